"""PrefixCache: which blocks hold which full block of which prefix.

A tree that all groups of the KV cache share: an entry is one full block of tokens after its parent
entry, and has the blocks that hold it, a group. The tree is found through a chain of digests
(SHA-256 over the parent's digest and the tokens, starting from the namespace), but a hit also
compares tokens and the parent itself, so a digest that collides costs a miss, never a wrong block.
Two sequences that compute the same prefix at the same time give one entry two blocks of each group.

    entries   root ── A ── B ── C ── D      a window group has lost what is behind its window:
    full            0    1    2    3        D serves a hit, since all entries before it say by
    window          -    -    7    8        their tokens what prefix it ends

So an entry stays while it has a block or children. It has children without a block of its own only
where a group has a window; such entries have a bound: there are never more than ``max_entries``,
and one more makes room by dropping the leaf that was used longest ago, whatever blocks it has.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Digest = Callable[[bytes], bytes]


def sha256_digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass(frozen=True, slots=True)
class Namespace:
    """Prefixes are shared only within one salt, adapter and adapter version."""

    salt: str
    adapter_id: str
    adapter_version: int

    def encode(self) -> bytes:
        """Unambiguous bytes: each string is preceded by its length."""
        salt = self.salt.encode("utf-8", "surrogatepass")
        adapter = self.adapter_id.encode("utf-8", "surrogatepass")
        numbers = array("q", (self.adapter_version, len(salt), len(adapter)))
        return numbers.tobytes() + salt + adapter


@dataclass(slots=True, eq=False)
class CacheEntry:
    """One full block of one prefix, and the blocks of each group that hold it.

    There is one for every block of a full cache, so it is small: its tokens are packed (_packed),
    a tenth of what the same numbers take as objects.
    """

    digest: bytes
    namespace: Namespace
    parent: CacheEntry | None
    packed_tokens: bytes
    block_ids: tuple[tuple[int, ...], ...]
    num_children: int = 0

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(array("i", self.packed_tokens))

    @property
    def has_blocks(self) -> bool:
        return any(self.block_ids)

    def matches(self, namespace: Namespace, parent: CacheEntry | None, tokens: bytes) -> bool:
        return (
            self.parent is parent and self.packed_tokens == tokens and self.namespace == namespace
        )


def _packed(token_ids: Sequence[int]) -> bytes:
    """Four bytes a token, in the machine's order: they never leave this process."""
    return array("i", token_ids).tobytes()


class PrefixCache:
    def __init__(
        self, digest: Digest = sha256_digest, *, num_groups: int = 1, max_entries: int
    ) -> None:
        self._digest = digest
        self._no_blocks: tuple[tuple[int, ...], ...] = ((),) * num_groups
        self._max_entries = max_entries
        self._entries: dict[bytes, CacheEntry] = {}
        self._entry_of_block: dict[int, CacheEntry] = {}
        self._leaves: OrderedDict[CacheEntry, None] = OrderedDict()  # used longest ago first
        self._dropped: list[int] = []

    @property
    def entries(self) -> tuple[CacheEntry, ...]:
        return tuple(self._entries.values())

    @property
    def leaves(self) -> tuple[CacheEntry, ...]:
        """In the order in which they make room."""
        return tuple(self._leaves)

    def entry_of(self, block_id: int) -> CacheEntry | None:
        return self._entry_of_block.get(block_id)

    def holds(self, block_id: int) -> bool:
        return block_id in self._entry_of_block

    def find(
        self, namespace: Namespace, token_ids: Sequence[int], block_size: int, max_tokens: int
    ) -> list[CacheEntry]:
        """Entries of the longest known prefix of ``token_ids``, at most ``max_tokens`` long. Not
        each has a block of every group."""
        found: list[CacheEntry] = []
        parent: CacheEntry | None = None
        for start in range(0, max_tokens - block_size + 1, block_size):
            tokens = _packed(token_ids[start : start + block_size])
            entry = self._entries.get(self._chain(namespace, parent, tokens))
            if entry is None or not entry.matches(namespace, parent, tokens):
                break
            found.append(entry)
            parent = entry
        if parent is not None:
            self._touch(parent)
        return found

    def insert(
        self,
        namespace: Namespace,
        parent: CacheEntry | None,
        token_ids: Sequence[int],
        block_ids: Sequence[int | None],
    ) -> CacheEntry | None:
        """Remembers that ``block_ids``, one of each group or None, hold ``token_ids`` after the
        parent entry's prefix; without a parent they are a prompt's first.

        Returns None, with nothing changed, where the parent is not known any more (the cache was
        reset since, or it made room), where another prefix has the same digest, where there is no
        block, and where there is no room.
        """
        if parent is not None and self._entries.get(parent.digest) is not parent:
            return None
        tokens = _packed(token_ids)
        digest = self._chain(namespace, parent, tokens)
        entry = self._entries.get(digest)
        if entry is None:
            if all(block is None for block in block_ids) or not self._make_room(parent):
                return None
            entry = CacheEntry(digest, namespace, parent, tokens, self._no_blocks)
            self._add(entry)
        elif not entry.matches(namespace, parent, tokens):
            return None
        entry.block_ids = tuple(
            ids if block is None or block in ids else (*ids, block)
            for ids, block in zip(entry.block_ids, block_ids, strict=True)
        )
        self._entry_of_block.update((block, entry) for block in block_ids if block is not None)
        self._touch(entry)
        return entry

    def collect_dropped(self) -> list[int]:
        """Blocks that have lost their content since the last call, to make room."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def evict(self, block_id: int) -> None:
        entry = self._entry_of_block.pop(block_id)
        entry.block_ids = tuple(
            tuple(other for other in ids if other != block_id) for ids in entry.block_ids
        )
        self._remove_if_useless(entry)

    def clear(self) -> None:
        self._entries.clear()
        self._entry_of_block.clear()
        self._leaves.clear()

    def _touch(self, entry: CacheEntry) -> None:
        if entry in self._leaves:
            self._leaves.move_to_end(entry)

    def _make_room(self, parent: CacheEntry | None) -> bool:
        """For a child of ``parent``: False where all else that is known are its own parents."""
        while len(self._entries) >= self._max_entries:
            oldest = next((leaf for leaf in self._leaves if leaf is not parent), None)
            if oldest is None:
                return False
            blocks = [block for ids in oldest.block_ids for block in ids]
            for block in blocks:
                del self._entry_of_block[block]
            self._dropped += blocks
            oldest.block_ids = self._no_blocks
            self._remove_if_useless(oldest)
        return True

    def _add(self, entry: CacheEntry) -> None:
        self._entries[entry.digest] = entry
        self._leaves[entry] = None
        if entry.parent is not None:
            entry.parent.num_children += 1
            self._leaves.pop(entry.parent, None)

    def _remove_if_useless(self, entry: CacheEntry | None) -> None:
        """And then its parents, as far as they were kept for it alone."""
        while entry is not None and not entry.num_children and not entry.has_blocks:
            del self._entries[entry.digest]
            self._leaves.pop(entry, None)
            entry = entry.parent
            if entry is not None:
                entry.num_children -= 1
                if not entry.num_children:
                    self._leaves[entry] = None
                    self._leaves.move_to_end(entry, last=False)

    def _chain(self, namespace: Namespace, parent: CacheEntry | None, tokens: bytes) -> bytes:
        before = self._digest(namespace.encode()) if parent is None else parent.digest
        return self._digest(before + tokens)

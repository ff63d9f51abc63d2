"""PrefixCache: which blocks hold which full block of which prefix.

A tree: an entry is one full block of tokens after its parent entry. The tree is found through a
chain of digests (SHA-256 over the parent's digest and the tokens, starting from the namespace), but
a hit also compares tokens and the parent itself, so a digest that collides costs a miss, never a
wrong block. Two sequences that compute the same prefix at the same time give one entry two blocks.

A parent outlives its children: a table that holds a child's block holds a block of its parent, and
tables are released from the end, so the least recently released block is always a leaf.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Digest = Callable[[bytes], bytes]


def sha256_digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass(frozen=True, slots=True)
class Namespace:
    """Prefixes are shared only within one group, salt, adapter and adapter version."""

    group: int
    salt: str
    adapter_id: str
    adapter_version: int

    def encode(self) -> bytes:
        """Unambiguous bytes: each string is preceded by its length."""
        salt = self.salt.encode("utf-8", "surrogatepass")
        adapter = self.adapter_id.encode("utf-8", "surrogatepass")
        numbers = array("q", (self.group, self.adapter_version, len(salt), len(adapter)))
        return numbers.tobytes() + salt + adapter


@dataclass(slots=True, eq=False)
class CacheEntry:
    """One full block of one prefix, and the blocks that hold it.

    There is one for every block of a full cache, so it is small: its tokens are packed (_packed),
    a tenth of what the same numbers take as objects.
    """

    digest: bytes
    namespace: Namespace
    parent: CacheEntry | None
    packed_tokens: bytes
    block_ids: tuple[int, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(array("i", self.packed_tokens))

    def matches(self, namespace: Namespace, parent: CacheEntry | None, tokens: bytes) -> bool:
        return (
            self.parent is parent and self.packed_tokens == tokens and self.namespace == namespace
        )


def _packed(token_ids: Sequence[int]) -> bytes:
    """Four bytes a token, in the machine's order: they never leave this process."""
    return array("i", token_ids).tobytes()


class PrefixCache:
    def __init__(self, digest: Digest = sha256_digest) -> None:
        self._digest = digest
        self._entries: dict[bytes, CacheEntry] = {}
        self._entry_of_block: dict[int, CacheEntry] = {}

    @property
    def entries(self) -> tuple[CacheEntry, ...]:
        return tuple(self._entries.values())

    def entry_of(self, block_id: int) -> CacheEntry | None:
        return self._entry_of_block.get(block_id)

    def holds(self, block_id: int) -> bool:
        return block_id in self._entry_of_block

    def find(
        self, namespace: Namespace, token_ids: Sequence[int], block_size: int, max_tokens: int
    ) -> list[int]:
        """Blocks of the longest cached prefix of ``token_ids``, at most ``max_tokens`` long."""
        block_ids: list[int] = []
        parent: CacheEntry | None = None
        for start in range(0, max_tokens - block_size + 1, block_size):
            tokens = _packed(token_ids[start : start + block_size])
            entry = self._entries.get(self._chain(namespace, parent, tokens))
            if entry is None or not entry.matches(namespace, parent, tokens):
                break
            block_ids.append(entry.block_ids[0])
            parent = entry
        return block_ids

    def insert(
        self,
        namespace: Namespace,
        parent_block_id: int | None,
        token_ids: Sequence[int],
        block_id: int,
    ) -> bool:
        """Remembers that ``block_id`` holds ``token_ids`` after the parent block's prefix.

        Returns False, with nothing changed, where the parent is not known (the cache was reset
        since) or another prefix has the same digest.
        """
        parent = None
        if parent_block_id is not None:
            parent = self._entry_of_block.get(parent_block_id)
            if parent is None:
                return False
        tokens = _packed(token_ids)
        digest = self._chain(namespace, parent, tokens)
        entry = self._entries.get(digest)
        if entry is None:
            entry = self._entries[digest] = CacheEntry(digest, namespace, parent, tokens)
        elif not entry.matches(namespace, parent, tokens):
            return False
        if block_id not in entry.block_ids:
            entry.block_ids = (*entry.block_ids, block_id)
        self._entry_of_block[block_id] = entry
        return True

    def evict(self, block_id: int) -> None:
        entry = self._entry_of_block.pop(block_id)
        entry.block_ids = tuple(other for other in entry.block_ids if other != block_id)
        if not entry.block_ids:
            del self._entries[entry.digest]

    def clear(self) -> None:
        self._entries.clear()
        self._entry_of_block.clear()

    def _chain(self, namespace: Namespace, parent: CacheEntry | None, tokens: bytes) -> bytes:
        before = self._digest(namespace.encode()) if parent is None else parent.digest
        return self._digest(before + tokens)

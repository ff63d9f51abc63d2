"""PrefixHit: the longest cached prefix that every group of the KV cache serves.

A full group serves a prefix with all of its blocks, a window group with those that the next token
sees. Of the prefixes that all groups serve, the longest counts:

    entries          A  B  C  D  E     window: 2 blocks
    full group       0  1  2  3  -     serves A .. ABCD
    window group     7  -  8  9  4     serves A, ABCD and ABCDE, not AB and ABC
    the hit          ABCD: 0 1 2 3 in the full group, NULL NULL 8 9 in the other
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.kv_spec import NULL_BLOCK, KVCacheGroup
from server.engine.prefix_cache import CacheEntry

BlockIds = tuple[tuple[int, ...], ...]  # one tuple a group


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """``block_ids`` are the beginnings of the tables: NULL_BLOCK stands for what is behind a
    window. ``entry`` is the prefix's last one in the cache, None where there is no prefix."""

    num_tokens: int
    block_ids: BlockIds
    entry: CacheEntry | None = None

    @property
    def held_ids(self) -> list[int]:
        return [block for ids in self.block_ids for block in ids if block != NULL_BLOCK]


def longest_hit(entries: Sequence[CacheEntry], groups: Sequence[KVCacheGroup]) -> PrefixHit:
    """``entries`` are a known prefix from its beginning, as PrefixCache.find gives it."""
    served = _num_served(entries, groups)
    if not served:
        return PrefixHit(0, tuple(() for _ in groups))
    num_tokens = served * groups[0].block_size
    firsts = [group.first_block(num_tokens) for group in groups]
    block_ids = tuple(
        (NULL_BLOCK,) * first + tuple(entry.block_ids[group][0] for entry in entries[first:served])
        for group, first in enumerate(firsts)
    )
    return PrefixHit(num_tokens, block_ids, entries[served - 1])


def _num_served(entries: Sequence[CacheEntry], groups: Sequence[KVCacheGroup]) -> int:
    """How many of the entries a hit has."""
    longest = 0
    runs = [0] * len(groups)  # entries in a row that have a block, up to this one
    for count, entry in enumerate(entries, start=1):
        runs = [run + 1 if ids else 0 for run, ids in zip(runs, entry.block_ids, strict=True)]
        if all(
            run >= count - group.first_block(count * group.block_size)
            for run, group in zip(runs, groups, strict=True)
        ):
            longest = count
    return longest

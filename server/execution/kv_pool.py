"""The pages of the KV cache on a device: their numbers and, of a quantised format, the scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

import kernels
from server.memory.kv_groups import CachePart
from weights.spec import AttentionSpec

CacheLayer = tuple[torch.Tensor, torch.Tensor | None]  # numbers and scales, as kernels take them


@dataclass(frozen=True, slots=True)
class KVPool:
    """``numbers`` are [places of a page, blocks, 2, heads, block_size, channels], ``scales`` the
    same without channels, float32; None where the format has none (server.memory.layout)."""

    numbers: torch.Tensor
    scales: torch.Tensor | None = None

    @classmethod
    def of(cls, buffers: Mapping[str, torch.Tensor]) -> KVPool:
        """That of a layout's buffers."""
        return cls(buffers["kv_cache"], buffers.get("kv_scales"))

    def layer(self, part: CachePart, heads: AttentionSpec) -> CacheLayer:
        """A layer's numbers [blocks, 2, Hkv, block_size, hd] and scales [blocks, 2, Hkv,
        block_size]: all of its place, or as much of each block as its heads keep."""
        place, block_size = self.numbers[part.place], self.numbers.shape[-2]
        scales = None if self.scales is None else self.scales[part.place]
        kept = (heads.num_kv_heads, block_size, heads.head_dim)
        if place.shape[2:] == kept:
            return place, scales
        start = part.elements_before * block_size
        numbers = place.flatten(1)[:, start : start + 2 * heads.kv_size * block_size]
        if scales is not None:
            # A place has a scale for so many channels; wider heads leave some of theirs unused.
            first = part.elements_before // place.shape[-1] * block_size
            scales = scales.flatten(1)[:, first : first + 2 * heads.num_kv_heads * block_size]
            scales = scales.view(-1, 2, *kept[:2])
        return numbers.view(-1, 2, *kept), scales

    def copy_blocks(self, sources: torch.Tensor, destinations: torch.Tensor) -> None:
        """Whole blocks of every place: ``sources`` and ``destinations`` are [n] int32."""
        kernels.copy_blocks(self.numbers, sources, destinations)
        if self.scales is not None:
            kernels.copy_blocks(self.scales.unsqueeze(-1), sources, destinations)

    def poison(self, blocks: torch.Tensor | None = None) -> None:
        """NaN into some blocks [n] int64, or all: nothing read from there is a number."""
        pool = self.numbers if self.scales is None else self.scales
        if blocks is None:
            pool.fill_(float("nan"))
        else:
            pool.index_fill_(1, blocks, float("nan"))

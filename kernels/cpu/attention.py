"""Attention on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import reference
from kernels.attention_types import AttentionMetadata
from kernels.workspace import AttentionShape


def prepare(
    starts: list[int], contexts: list[int], block_tables: Tensor, shape: AttentionShape
) -> object:
    return shape


def paged(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    buffer: Tensor | None,
) -> Tensor:
    return reference.paged_attention(q, cache_layer, metadata, scale=scale)


def varlen(
    q: Tensor, k: Tensor, v: Tensor, bounds: list[int], causal: bool, scale: float
) -> Tensor:
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    return reference.varlen_attention(q, k, v, cu_seqlens, causal=causal, scale=scale)

"""Paged attention on a GPU: rows of one token by the decode kernel, the others by prefill.

Both kernels read from the step's tensors which rows are theirs and pass over the others, so that a
mixed step needs no sorting and nothing is read back. In batch-invariant mode every row goes through
prefill, whose order of additions depends on nothing but the row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import Tensor

from kernels.checks import check_contiguous, check_range
from kernels.footprint.attention import AttentionShape
from kernels.gpu.decode_work import AttentionWork, plan
from kernels.gpu.paged_decode import decode
from kernels.types import PLAIN, AttentionFeatures, AttentionMetadata


@dataclass(frozen=True, slots=True)
class InvariantWork:
    """A step of which prefill runs every row: there is nothing to share out."""

    shape: AttentionShape


def prepare_step(
    metadata: AttentionMetadata, shape: AttentionShape, buffer: Tensor | None
) -> AttentionMetadata:
    """As kernels.prepare_attention. Raises ValueError where something is missing or too large."""
    for name in ("max_query_len", "max_seq_len"):
        if not getattr(metadata, name):
            raise ValueError(
                f"{name} is missing; on a GPU it must be given, for nothing is read back"
            )
    if buffer is None:
        raise ValueError("workspace is missing; on a GPU the work list is built in it")
    rows, tokens = metadata.seq_lens.shape[0], metadata.slot_mapping.shape[0]
    check_range("rows of seq_lens", rows, 1, shape.max_num_seqs)
    check_range("tokens of slot_mapping", tokens, 1, shape.max_num_batched_tokens)
    if metadata.work is not None:  # of another group of the same step: its lists tell of rows alone
        return metadata
    return replace(metadata, work=prepare(metadata, shape, buffer))


def prepare(metadata: AttentionMetadata, shape: AttentionShape, buffer: Tensor) -> object:
    """A step's work, its lists built on the device in ``buffer``; nothing is waited for.

    Raises ValueError where the workspace is too small.
    """
    if shape.batch_invariant:
        return InvariantWork(shape)
    work = plan(shape, buffer)
    work.build(metadata)
    return work


def paged(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    buffer: Tensor | None,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """As kernels.paged_attention; rows of no tokens or no context are padding and stay unwritten.

    Raises ValueError where metadata or workspace are another step's.
    """
    work = metadata.work
    if not isinstance(work, AttentionWork | InvariantWork):
        raise ValueError("metadata was not made by prepare_attention for a GPU")
    _check_step(q, cache_layer, work.shape)
    if kv_scales is not None:
        check_contiguous("kv_scales", kv_scales)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if isinstance(work, AttentionWork):
        if buffer is not None and buffer.data_ptr() != work.scratch.lists.data_ptr():
            raise ValueError("workspace is not the one that prepare_attention was given")
        decode(q, cache_layer, metadata, work, scale, features, kv_scales, out)
    if isinstance(work, InvariantWork) or metadata.max_query_len > 1:
        prefill = import_module("kernels.gpu.prefill_attention").paged_prefill
        prefill(q, cache_layer, metadata, work.shape, scale, features, kv_scales, out)
    return out


def _check_step(q: Tensor, cache_layer: Tensor, shape: AttentionShape) -> None:
    given = (q.shape[1], *cache_layer.shape[2:])
    planned = (shape.num_query_heads, shape.num_kv_heads, shape.block_size, shape.head_dim)
    if given != planned:
        raise ValueError(
            "q and cache_layer have (query heads, kv heads, block_size, head_dim)"
            f" {given}; metadata was prepared for {planned}"
        )
    check_contiguous("cache_layer", cache_layer)
    if q.stride(2) != 1:
        raise ValueError(f"q has strides {list(q.stride())}; the last must be 1")

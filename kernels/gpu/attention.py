"""Paged attention on a GPU: rows of one token by the decode kernel, the others by prefill.

Both kernels read from the step's tensors which rows are theirs and pass over the others, so that a
mixed step needs no sorting and nothing is read back. In batch-invariant mode every row goes through
prefill, whose order of additions depends on nothing but the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import tuning
from kernels.attention_types import PLAIN, AttentionFeatures, AttentionMetadata
from kernels.gpu.compile_case import ASYNC_COPY, CompileCase
from kernels.gpu.decode_work import PROGRAMS, ROWS, WARPS, AttentionWork, plan
from kernels.gpu.interpreter import interpreted
from kernels.jit.decode_work import build_decode_work
from kernels.jit.paged_decode import paged_decode
from kernels.workspace import AttentionShape

NATIVE_FLOAT8 = 89  # the first architecture whose instructions know float8_e4m3fn
LEAST_ROWS = 16  # of a tensor-core product; a smaller group is padded
JOINED_NUMBERS = 2048  # that a program holds at once while it joins the parts of a pair
TRITON_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True, slots=True)
class InvariantWork:
    """A step of which prefill runs every row: there is nothing to share out."""

    shape: AttentionShape


def prepare(metadata: AttentionMetadata, shape: AttentionShape, buffer: Tensor) -> object:
    """A step's work, its list built on the device in ``buffer``; nothing is waited for.

    Raises ValueError where the workspace is too small.
    """
    if shape.batch_invariant:
        return InvariantWork(shape)
    work = plan(shape, buffer)
    work.list_for(0, metadata)
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
    if q.stride(2) != 1:
        raise ValueError(f"q has strides {list(q.stride())}; the last must be 1")


def decode(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    work: AttentionWork,
    scale: float,
    features: AttentionFeatures,
    kv_scales: Tensor | None,
    out: Tensor,
) -> None:
    """Writes the rows of one query token to ``out`` [T, Hq, hd], contiguous; no others."""
    shape = work.shape
    arch = tuning.architecture(q.device)
    cache = cache_layer
    if cache.dtype is torch.float8_e4m3fn and arch < NATIVE_FLOAT8:
        cache = cache.view(torch.uint8)
    tuned = _tuned(arch, shape.head_dim, shape.group, cache.element_size())
    todo = work.list_for(features.window, metadata)
    scratch = work.scratch
    absent = scratch.sums  # a pointer that is never followed
    paged_decode[(work.programs,)](
        q,
        cache,
        absent if kv_scales is None else kv_scales,
        metadata.block_tables,
        out,
        absent if features.alibi_slopes is None else features.alibi_slopes,
        absent if features.sinks is None else features.sinks,
        todo.header,
        todo.program_starts,
        todo.records,
        scratch.counters,
        scratch.partials,
        scratch.maxima,
        scratch.sums,
        scale,
        features.soft_cap,
        features.window,
        q.stride(0),
        q.stride(1),
        metadata.block_tables.stride(0),
        **_constants(shape.group, shape.num_kv_heads, shape.head_dim, shape.block_size, work.tile),
        HAS_WINDOW=features.window > 0,
        HAS_SOFT_CAP=features.soft_cap > 0,
        HAS_ALIBI=features.alibi_slopes is not None,
        HAS_SINKS=features.sinks is not None,
        QUANTISED=kv_scales is not None,
        PRODUCT_TYPE=_product_type(q.dtype, kv_scales is not None),
        INTERPRETED=interpreted(),
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
    )


def _tuned(arch: int, head_dim: int, group: int, cache_bytes: int) -> tuning.Tuning:
    return tuning.lookup(
        "paged_decode", arch, head_dim=head_dim, group=group, cache_bytes=cache_bytes
    )


def _product_type(dtype: torch.dtype, quantised: bool) -> tl.dtype:
    """float16 for quantised numbers, for it is one instruction from them; see in_units."""
    return tl.float16 if quantised and dtype is not torch.float32 else TRITON_TYPES[dtype]


def _constants(
    group: int, num_kv_heads: int, head_dim: int, block_size: int, tile: int
) -> dict[str, int]:
    group_pad, head_pad = triton.next_power_of_2(group), triton.next_power_of_2(head_dim)
    return {
        "GROUP": group,
        "GROUP_ROWS": max(LEAST_ROWS, group_pad),
        "GROUP_PAD": group_pad,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "HEAD_PAD": head_pad,
        "BLOCK_SIZE": block_size,
        "TILE": tile,
        "PARTS": max(1, min(16, JOINED_NUMBERS // (group_pad * head_pad))),
    }

"""Attention: over the paged KV cache, and over plain sequences without a cache."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from kernels.attention_types import AttentionMetadata
from kernels.checks import FLOATS, check_dtype, check_same_device, check_shape
from kernels.cpu import attention as cpu_attention
from kernels.dispatch import select
from kernels.kv_store import check_cache_layer
from kernels.workspace import AttentionShape, attention_workspace_bytes


class AttentionWorkspace:
    """The scratch of paged_attention, allocated once for the largest step of a shape.

    One workspace serves one call at a time; it may be shared by all layers. ``nbytes`` is exactly
    ``attention_workspace_bytes(shape)``.
    """

    def __init__(self, shape: AttentionShape, device: torch.device | str = "cpu") -> None:
        self.shape = shape
        self.nbytes = attention_workspace_bytes(shape)
        self.buffer = torch.empty(self.nbytes, dtype=torch.uint8, device=device)


def prepare_attention(
    *,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    slot_mapping: Tensor,
    positions: Tensor,
    shape: AttentionShape,
) -> AttentionMetadata:
    """The metadata of one step, with the backend's work list; made once, used by every layer.

    query_start_loc [B + 1] int32 rises from 0 to T, strictly: every row has at least one token.
    seq_lens [B] int32 is each row's context with this step's tokens. block_tables
    [B, max_blocks] int32 is read only as far as a row's context reaches. slot_mapping [T] and
    positions [T] are int64. Tensors may be views of persistent buffers: they are not copied, but
    the work list is made from their values now. Raises ValueError for a wrong argument.
    """
    rows = seq_lens.shape[0]
    check_shape("seq_lens", seq_lens, (None,))
    check_shape("query_start_loc", query_start_loc, (rows + 1,))
    check_shape("block_tables", block_tables, (rows, None))
    check_shape("slot_mapping", slot_mapping, (None,))
    check_shape("positions", positions, tuple(slot_mapping.shape))
    for name, tensor in (
        ("query_start_loc", query_start_loc),
        ("seq_lens", seq_lens),
        ("block_tables", block_tables),
    ):
        check_dtype(name, tensor, (torch.int32,))
    check_dtype("slot_mapping", slot_mapping, (torch.int64,))
    check_dtype("positions", positions, (torch.int64,))
    check_same_device(
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        block_tables=block_tables,
        slot_mapping=slot_mapping,
        positions=positions,
    )
    starts, contexts = query_start_loc.tolist(), seq_lens.tolist()
    lengths = [after - before for before, after in itertools.pairwise(starts)]
    _check_rows(starts, lengths, contexts, slot_mapping.shape[0], block_tables.shape[1], shape)
    run = select("prepare_attention", block_tables.device, cpu=cpu_attention.prepare)
    return AttentionMetadata(
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        block_tables=block_tables,
        slot_mapping=slot_mapping,
        positions=positions,
        max_query_len=max(lengths, default=0),
        max_seq_len=max(contexts, default=0),
        work=run(starts, contexts, block_tables, shape),
    )


def _check_rows(
    starts: list[int],
    lengths: list[int],
    contexts: list[int],
    tokens: int,
    max_blocks: int,
    shape: AttentionShape,
) -> None:
    if starts[0] != 0 or starts[-1] != tokens:
        raise ValueError(
            f"query_start_loc runs from {starts[0]} to {starts[-1]}; it must run from 0 to"
            f" {tokens}, the length of slot_mapping"
        )
    if len(contexts) > shape.max_num_seqs:
        raise ValueError(f"seq_lens has {len(contexts)} rows; at most {shape.max_num_seqs} fit")
    if tokens > shape.max_num_batched_tokens:
        raise ValueError(
            f"slot_mapping has {tokens} tokens; at most {shape.max_num_batched_tokens} fit"
        )
    room = min(shape.max_model_len, max_blocks * shape.block_size)
    for row, (length, context) in enumerate(zip(lengths, contexts, strict=True)):
        if length < 1:
            raise ValueError(f"query_start_loc gives row {row} {length} tokens; it must have some")
        if not length <= context <= room:
            raise ValueError(
                f"seq_lens[{row}] is {context}; it must be in {length} .. {room}: its tokens of"
                " this step at least, and no more than max_model_len or its block table holds"
            )


def paged_attention(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    workspace: AttentionWorkspace | None = None,
) -> Tensor:
    """Causal attention of every row's tokens over that row's own context in the cache.

    q is [T, Hq, hd]; cache_layer is [num_blocks, 2, Hkv, block_size, hd] of q's dtype, with this
    step's keys and values already stored (rotary_store_kv). Returns [T, Hq, hd] in q's dtype.
    ``scale`` multiplies q.k before the softmax. What lies in the cache outside a row's context,
    NaN included, has no influence. Without a ``workspace`` one is allocated for the call.
    Raises ValueError for a wrong argument.
    """
    check_cache_layer(cache_layer)
    check_shape("q", q, (metadata.slot_mapping.shape[0], None, cache_layer.shape[4]))
    check_dtype("q", q, (cache_layer.dtype,))
    check_same_device(cache_layer=cache_layer, q=q)
    run = select("paged_attention", cache_layer.device, cpu=cpu_attention.paged)
    return run(q, cache_layer, metadata, scale, None if workspace is None else workspace.buffer)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, causal: bool, scale: float
) -> Tensor:
    """Attention within each of B sequences that lie one after the other, without a cache.

    q is [T, Hq, hd], k and v are [T, Hkv, hd]; sequence b is
    ``cu_seqlens[b] : cu_seqlens[b + 1]``, cu_seqlens [B + 1] int32 rising from 0 to T. Returns
    [T, Hq, hd] in q's dtype. Raises ValueError for a wrong argument.
    """
    check_shape("q", q, (None, None, None))
    check_dtype("q", q, FLOATS)
    check_shape("k", k, (q.shape[0], None, q.shape[2]))
    check_shape("v", v, tuple(k.shape))
    for name, tensor in (("k", k), ("v", v)):
        check_dtype(name, tensor, (q.dtype,))
    if k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads; it must be a multiple of k's {k.shape[1]}")
    check_shape("cu_seqlens", cu_seqlens, (None,))
    check_dtype("cu_seqlens", cu_seqlens, (torch.int32,))
    check_same_device(q=q, k=k, v=v, cu_seqlens=cu_seqlens)
    bounds = cu_seqlens.tolist()
    rising = all(low <= high for low, high in itertools.pairwise(bounds))
    if not bounds or bounds[0] != 0 or bounds[-1] != q.shape[0] or not rising:
        raise ValueError(f"cu_seqlens must rise from 0 to {q.shape[0]}, the tokens of q")
    run = select("varlen_attention", q.device, cpu=cpu_attention.varlen)
    return run(q, k, v, bounds, causal, scale)

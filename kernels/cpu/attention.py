"""Tiled attention on a CPU, over a work list (kernels.cpu.attention_work).

For every segment of a wave: bring its keys and values together, weigh them with torch's flash
attention, and merge the result into the sums so far by the logarithms of the softmaxes'
denominators (Rabe and Staats 2021, arXiv 2112.05682; Dao et al. 2022, arXiv 2205.14135). The query
heads of a KV head are further queries to that head, so keys are read once a group. There is no
loop over tokens, nor over requests but in waves of as many as scratch holds.

A masked score gets HIDDEN added, finite on purpose: a query that sees nothing of a key tile then
has a log-sum near HIDDEN there, and the merge gives that tile the weight 0, where minus infinity
would ask for special cases. Slots behind a row's context may hold anything, NaN included, which no
mask can undo (0 * NaN is NaN): they are zeroed after the gather, or never gathered.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.cpu.attention_work import (
    AttentionWork,
    Segment,
    Wave,
    paged_lookup,
    plan,
    varlen_lookup,
)
from kernels.footprint.attention import AttentionShape
from kernels.types import PLAIN, AttentionFeatures, AttentionMetadata

HIDDEN = -1e30

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def prepare_step(
    metadata: AttentionMetadata, shape: AttentionShape, buffer: Tensor | None
) -> AttentionMetadata:
    """As kernels.prepare_attention: bounds and work list from the step's own values, now.

    Raises ValueError where these do not fit together.
    """
    starts, contexts = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
    lengths = [after - before for before, after in itertools.pairwise(starts)]
    blocks = metadata.block_tables.shape[1]
    _check_rows(starts, lengths, contexts, metadata.slot_mapping.shape[0], blocks, shape)
    return replace(
        metadata,
        max_query_len=max(lengths, default=0),
        max_seq_len=max(contexts, default=0),
        work=prepare(starts, contexts, metadata.block_tables, shape),
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


def prepare(
    bounds: list[int], contexts: list[int], block_tables: Tensor, shape: AttentionShape
) -> AttentionWork:
    lookup = paged_lookup(block_tables, contexts, shape)
    return plan(bounds, contexts, True, shape, lookup)


def paged(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    buffer: Tensor | None,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
) -> Tensor:
    _check_plain(features, kv_scales)
    work = metadata.work
    if not isinstance(work, AttentionWork):
        raise ValueError("metadata was not made by prepare_attention for a CPU")
    shape = work.shape
    given = (q.shape[1], *cache_layer.shape[2:], q.element_size())
    planned = (shape.num_query_heads, shape.num_kv_heads, shape.block_size, shape.head_dim)
    if given != (*planned, shape.element_bytes):
        raise ValueError(
            "q and cache_layer have (query heads, kv heads, block_size, head_dim, element bytes)"
            f" {given}; metadata was prepared for {(*planned, shape.element_bytes)}"
        )
    source = cache_layer.view(-1, shape.block_size * shape.head_dim)
    return _run(q, (source,), work, scale, buffer)


def varlen_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_query_len: int | None,
    causal: bool,
    scale: float,
    features: AttentionFeatures = PLAIN,
) -> Tensor:
    """As kernels.varlen_attention. Raises ValueError for bounds that do not rise through q."""
    bounds = cu_seqlens.tolist()
    rising = all(low <= high for low, high in itertools.pairwise(bounds))
    if not bounds or bounds[0] != 0 or bounds[-1] != q.shape[0] or not rising:
        raise ValueError(f"cu_seqlens must rise from 0 to {q.shape[0]}, the tokens of q")
    return varlen(q, k, v, bounds, causal, scale, features)


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: list[int],
    causal: bool,
    scale: float,
    features: AttentionFeatures = PLAIN,
) -> Tensor:
    _check_plain(features, None)
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    if not q.shape[0]:
        return torch.empty_like(q)
    shape = AttentionShape(
        num_query_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=q.shape[2],
        block_size=1,
        element_bytes=q.element_size(),
        max_num_seqs=len(lengths),
        max_num_batched_tokens=q.shape[0],
        max_model_len=max(lengths),
    )
    work = plan(bounds, lengths, causal, shape, varlen_lookup(bounds, shape))
    sources = (k.reshape(-1, k.shape[2]), v.reshape(-1, v.shape[2]))
    return _run(q, sources, work, scale, None)


def _check_plain(features: AttentionFeatures, kv_scales: Tensor | None) -> None:
    if not features.is_plain:
        raise NotImplementedError(
            "attention on a CPU has no window, soft cap, ALiBi or sinks; use a GPU for such a model"
        )
    if kv_scales is not None:
        raise NotImplementedError("attention on a CPU reads no quantised KV cache; leave it off")


def _run(
    q: Tensor, sources: tuple[Tensor, ...], work: AttentionWork, scale: float, buffer: Tensor | None
) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype)
    if buffer is None:
        buffer = torch.empty(work.scratch_bytes, dtype=torch.uint8)
    elif buffer.numel() < work.scratch_bytes:
        raise ValueError(
            f"workspace has {buffer.numel()} bytes; this step needs {work.scratch_bytes}:"
            " make the workspace from the shape that prepare_attention was given"
        )
    for wave in work.waves:
        scratch = _Scratch.carve(buffer, wave, work.shape, q.dtype)
        _lay_out_queries(q, wave, scratch)
        for segment in wave.segments:
            _attend(segment, wave, sources, scratch, scale)
        _scatter(out, wave, scratch)
    return out


@dataclass(frozen=True, slots=True)
class _Scratch:
    """A wave's views into the workspace; n items, M = group * query_tile."""

    gathered: Tensor  # flat, in the cache's dtype
    widened: Tensor | None  # flat float32
    queries: Tensor  # [n, Hq, query_tile, hd]
    mask: Tensor  # flat float32
    result: Tensor  # [n, Hkv, M, hd] float32
    log_sums: Tensor  # [n, Hkv, M] float32
    head_dim: int

    @classmethod
    def carve(
        cls, buffer: Tensor, wave: Wave, shape: AttentionShape, dtype: torch.dtype
    ) -> _Scratch:
        sizes = wave.regions.sizes
        gathered, widened, queries, mask, result, log_sums = buffer[: sum(sizes)].split_with_sizes(
            sizes
        )
        wide = widened.numel() > 0
        rows = (wave.items, shape.num_kv_heads, shape.group * wave.query_tile)
        count = wave.items * shape.num_query_heads * wave.query_tile
        size = count * shape.head_dim
        query_dtype = torch.float32 if wide else dtype
        return cls(
            gathered=gathered.view(dtype),
            widened=widened.view(torch.float32) if wide else None,
            queries=queries.view(query_dtype)[:size].view(
                wave.items, shape.num_query_heads, wave.query_tile, shape.head_dim
            ),
            mask=mask.view(torch.float32),
            result=result.view(torch.float32)[:size].view(*rows, shape.head_dim),
            log_sums=log_sums.view(torch.float32)[:count].view(rows),
            head_dim=shape.head_dim,
        )


def _lay_out_queries(q: Tensor, wave: Wave, scratch: _Scratch) -> None:
    items, heads, tile, head_dim = scratch.queries.shape
    picked = q.index_select(0, wave.query_ids).view(items, tile, heads, head_dim)
    scratch.queries.copy_(picked.transpose(1, 2))


def _attend(
    segment: Segment, wave: Wave, sources: tuple[Tensor, ...], scratch: _Scratch, scale: float
) -> None:
    part = slice(segment.first, segment.last)
    result, log_sums = scratch.result[part], scratch.log_sums[part]
    keys, values = _gather(segment, sources, scratch, heads=result.shape[1])
    queries = scratch.queries[part].reshape(result.shape)
    mask = None if segment.hides is None else _mask(segment, segment.hides, wave, scratch)
    tile_result, tile_log_sums = _flash(
        queries, keys, values, 0.0, False, attn_mask=mask, scale=scale
    )
    if segment.key_start == 0:
        result.copy_(tile_result)
        log_sums.copy_(tile_log_sums)
    else:
        _merge(result, log_sums, tile_result, tile_log_sums)


def _gather(
    segment: Segment, sources: tuple[Tensor, ...], scratch: _Scratch, *, heads: int
) -> tuple[Tensor, Tensor]:
    """Keys and values of a segment, each [items, Hkv, width, hd], stale slots zeroed."""
    items = segment.last - segment.first
    shape = (2, items, heads, segment.width, scratch.head_dim)
    size = 2 * items * heads * segment.width * scratch.head_dim
    flat = scratch.gathered[:size]
    for source, part in zip(sources, flat.chunk(len(sources)), strict=True):
        torch.index_select(source, 0, segment.gather, out=part.view(-1, source.shape[1]))
    both = flat.view(shape)
    if segment.stale is not None:
        flat.view(-1, scratch.head_dim).index_fill_(0, segment.stale, 0)
    if scratch.widened is not None:
        both = scratch.widened[:size].view(shape).copy_(both)
    return both[0], both[1]


def _mask(segment: Segment, keys: Tensor, wave: Wave, scratch: _Scratch) -> Tensor:
    """[items, 1, M, width]: 0 where the query sees the key, HIDDEN where it does not."""
    limits = wave.limits[segment.first : segment.last]  # [items, 1, query_tile, 1]
    items, tile, width = limits.shape[0], limits.shape[2], keys.shape[0]
    rows = scratch.result.shape[2]
    hidden = (keys - limits).clamp_(0, 1).mul_(HIDDEN)
    if tile == 1:
        return hidden.expand(-1, -1, rows, -1)
    mask = scratch.mask[: items * rows * width].view(items, rows // tile, tile, width)
    return mask.copy_(hidden).view(items, 1, rows, width)


def _merge(result: Tensor, log_sums: Tensor, other: Tensor, other_log_sums: Tensor) -> None:
    """Adds the softmax-weighted sums over further keys to those over the keys so far."""
    total = torch.logaddexp(log_sums, other_log_sums)
    kept = (log_sums - total).exp_().unsqueeze(-1)
    added = (other_log_sums - total).exp_().unsqueeze(-1)
    result.mul_(kept).addcmul_(other.float(), added)
    log_sums.copy_(total)


def _scatter(out: Tensor, wave: Wave, scratch: _Scratch) -> None:
    result = scratch.result.view(scratch.queries.shape)  # [n, Hq, query_tile, hd]
    if wave.valid is None:
        rows = result.squeeze(2)
    else:
        item_ids, offsets = wave.valid
        rows = result[item_ids, :, offsets]
    out.index_copy_(0, wave.token_ids, rows.to(out.dtype))

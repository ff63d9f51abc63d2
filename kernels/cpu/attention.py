"""Tiled attention on a CPU, over a work list (kernels.cpu.attention_work).

For every segment of a wave: bring its keys and values together, weigh them
(kernels.cpu.attention_scores), and merge the result into the sums so far by the logarithms of the
softmaxes' denominators (Rabe and Staats 2021, arXiv 2112.05682; Dao et al. 2022, arXiv 2205.14135).
A sink is merged last, as one more key without a value. The query heads of a KV head are further
queries to that head, so keys are read once a group. There is no loop over tokens, nor over requests
but in waves of as many as scratch holds.

Slots behind a row's context may hold anything, NaN included, which no mask can undo (0 * NaN is
NaN): they are zeroed after the gather, or never gathered, as are blocks behind a window.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.cpu.attention_scores import Scoring, attend
from kernels.cpu.attention_source import AttentionWork, Gathers, sequence_gathers
from kernels.cpu.attention_work import Segment, StepRows, Wave, WorkList
from kernels.cpu.kv_store import block_rows
from kernels.footprint.attention import AttentionShape
from kernels.types import PLAIN, AttentionFeatures, AttentionMetadata


def prepare_step(
    metadata: AttentionMetadata, shape: AttentionShape, buffer: Tensor | None
) -> AttentionMetadata:
    """As kernels.prepare_attention: bounds from the step's own values, now; lists when asked for.

    Raises ValueError where these do not fit together.
    """
    starts, contexts = checked_rows(metadata, shape)
    lengths = [after - before for before, after in itertools.pairwise(starts)]
    rows, lists = StepRows(starts, contexts, True, shape), {}
    if isinstance(metadata.work, AttentionWork):  # of another group of the same step
        rows, lists = metadata.work.rows, metadata.work.lists
    return replace(
        metadata,
        max_query_len=max(lengths, default=0),
        max_seq_len=max(contexts, default=0),
        work=AttentionWork(rows, metadata.block_tables, lists),
    )


def checked_rows(metadata: AttentionMetadata, shape: AttentionShape) -> tuple[list[int], list[int]]:
    """Where each row's tokens start, and the contexts. Raises ValueError where these do not fit
    together, or into ``shape``."""
    starts, contexts = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
    tokens, max_blocks = metadata.slot_mapping.shape[0], metadata.block_tables.shape[1]
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
    for row, ((start, end), context) in enumerate(
        zip(itertools.pairwise(starts), contexts, strict=True)
    ):
        length = end - start
        if length < 1:
            raise ValueError(f"query_start_loc gives row {row} {length} tokens; it must have some")
        if not length <= context <= room:
            raise ValueError(
                f"seq_lens[{row}] is {context}; it must be in {length} .. {room}: its tokens of"
                " this step at least, and no more than max_model_len or its block table holds"
            )
    return starts, contexts


def paged(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    buffer: Tensor | None,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
) -> Tensor:
    if kv_scales is not None:
        raise NotImplementedError("attention on a CPU reads no quantised KV cache; leave it off")
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
    if cache_layer.shape[0] > 1 and cache_layer.stride(0) != shape.block_stride:
        raise ValueError(
            f"cache_layer's blocks lie {cache_layer.stride(0)} elements apart; metadata was"
            f" prepared for {shape.block_stride}"
        )
    for name, asked, told in (
        ("a soft cap", features.soft_cap > 0, shape.soft_cap),
        ("ALiBi", features.alibi_slopes is not None, shape.alibi),
    ):
        if asked and not told:
            raise ValueError(
                f"a layer has {name}; the shape that prepare_attention was given has none"
            )
    source = block_rows(cache_layer, shape.block_size * shape.head_dim)
    listed, gathers = work.list_for(features.window)
    return _run(q, (source,), listed, gathers, scale, features, buffer)


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
        soft_cap=features.soft_cap > 0,
        alibi=features.alibi_slopes is not None,
    )
    listed = StepRows(bounds, lengths, causal, shape).plan(features.window)
    sources = (k.reshape(-1, k.shape[2]), v.reshape(-1, v.shape[2]))
    return _run(q, sources, listed, sequence_gathers(listed, bounds), scale, features, None)


def _run(
    q: Tensor,
    sources: tuple[Tensor, ...],
    work: WorkList,
    gathers: Gathers,
    scale: float,
    features: AttentionFeatures,
    buffer: Tensor | None,
) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype)
    if buffer is None:
        buffer = torch.empty(work.scratch_bytes, dtype=torch.uint8)
    elif buffer.numel() < work.scratch_bytes:
        raise ValueError(
            f"workspace has {buffer.numel()} bytes; this step needs {work.scratch_bytes}:"
            " make the workspace from the shape that prepare_attention was given"
        )
    how = Scoring.of(scale, features, capped=work.shape.soft_cap)
    for wave, found in zip(work.waves, gathers, strict=True):
        scratch = _Scratch.carve(buffer, wave, work.shape, q.dtype)
        _lay_out_queries(q, wave, scratch)
        for segment, gather in zip(wave.segments, found, strict=True):
            _attend(segment, gather, wave, sources, scratch, how)
        if features.sinks is not None:
            _sink(wave, scratch, features.sinks)
        _scatter(out, wave, scratch)
    return out


@dataclass(frozen=True, slots=True)
class _Scratch:
    """A wave's views into the workspace; n items, M = group * query_tile."""

    gathered: Tensor  # flat, in the cache's dtype
    widened: Tensor | None  # flat float32
    queries: Tensor  # [n, Hq, query_tile, hd]
    scores: Tensor  # flat float32
    result: Tensor  # [n, Hkv, M, hd] float32
    log_sums: Tensor  # [n, Hkv, M] float32
    head_dim: int

    @classmethod
    def carve(
        cls, buffer: Tensor, wave: Wave, shape: AttentionShape, dtype: torch.dtype
    ) -> _Scratch:
        sizes = wave.regions.sizes
        gathered, widened, queries, scores, result, log_sums = buffer[
            : sum(sizes)
        ].split_with_sizes(sizes)
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
            scores=scores.view(torch.float32),
            result=result.view(torch.float32)[:size].view(*rows, shape.head_dim),
            log_sums=log_sums.view(torch.float32)[:count].view(rows),
            head_dim=shape.head_dim,
        )


def _lay_out_queries(q: Tensor, wave: Wave, scratch: _Scratch) -> None:
    items, heads, tile, head_dim = scratch.queries.shape
    picked = q.index_select(0, wave.query_ids).view(items, tile, heads, head_dim)
    scratch.queries.copy_(picked.transpose(1, 2))


def _attend(
    segment: Segment,
    gather: Tensor,
    wave: Wave,
    sources: tuple[Tensor, ...],
    scratch: _Scratch,
    how: Scoring,
) -> None:
    part = slice(segment.first, segment.last)
    result, log_sums = scratch.result[part], scratch.log_sums[part]
    keys, values = _gather(segment, gather, sources, scratch, heads=result.shape[1])
    queries = scratch.queries[part].reshape(result.shape)
    tile_result, tile_log_sums = attend(queries, keys, values, segment, wave, how, scratch.scores)
    if segment.key_start == 0:
        result.copy_(tile_result)
        log_sums.copy_(tile_log_sums)
    else:
        _merge(result, log_sums, tile_result, tile_log_sums)


def _gather(
    segment: Segment,
    gather: Tensor,
    sources: tuple[Tensor, ...],
    scratch: _Scratch,
    *,
    heads: int,
) -> tuple[Tensor, Tensor]:
    """Keys and values of a segment, each [items, Hkv, width, hd], stale slots zeroed."""
    items = segment.last - segment.first
    shape = (2, items, heads, segment.width, scratch.head_dim)
    size = 2 * items * heads * segment.width * scratch.head_dim
    flat = scratch.gathered[:size]
    for source, part in zip(sources, flat.chunk(len(sources)), strict=True):
        torch.index_select(source, 0, gather, out=part.view(-1, source.shape[1]))
    both = flat.view(shape)
    if segment.stale is not None:
        flat.view(-1, scratch.head_dim).index_fill_(0, segment.stale, 0)
    if scratch.widened is not None:
        both = scratch.widened[:size].view(shape).copy_(both)
    return both[0], both[1]


def _merge(result: Tensor, log_sums: Tensor, other: Tensor, other_log_sums: Tensor) -> None:
    """Adds the softmax-weighted sums over further keys to those over the keys so far."""
    total = torch.logaddexp(log_sums, other_log_sums)
    kept = (log_sums - total).exp_().unsqueeze(-1)
    added = (other_log_sums - total).exp_().unsqueeze(-1)
    result.mul_(kept).addcmul_(other.float(), added)
    log_sums.copy_(total)


def _sink(wave: Wave, scratch: _Scratch, sinks: Tensor) -> None:
    """One more key for every query head, whose logit takes weight and whose value is zero."""
    by_head = scratch.log_sums.view(wave.items, -1, wave.query_tile)
    kept = (by_head - sinks.view(-1, 1)).sigmoid_()
    scratch.result.mul_(kept.view(scratch.log_sums.shape).unsqueeze(-1))


def _scatter(out: Tensor, wave: Wave, scratch: _Scratch) -> None:
    result = scratch.result.view(scratch.queries.shape)  # [n, Hq, query_tile, hd]
    if wave.valid is None:
        rows = result.squeeze(2)
    else:
        item_ids, offsets = wave.valid
        rows = result[item_ids, :, offsets]
    out.index_copy_(0, wave.token_ids, rows.to(out.dtype))

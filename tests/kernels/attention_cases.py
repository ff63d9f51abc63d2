"""Random steps over a paged cache, with NaN wherever attention must not look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import kernels
from kernels import AttentionFeatures, AttentionMetadata, AttentionShape

PLAIN = AttentionFeatures()


@dataclass(frozen=True)
class Step:
    """Rows are (tokens of this step, whole context)."""

    q: Tensor
    k: Tensor  # of the whole contexts, row after row
    v: Tensor
    cache: Tensor
    metadata: AttentionMetadata
    shape: AttentionShape
    scale: float
    kv_scales: Tensor | None = None  # of a quantised cache


def make_step(
    rows: list[tuple[int, int]],
    *,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    spare_blocks: int = 3,
    features: AttentionFeatures = PLAIN,
) -> Step:
    """A cache poisoned with NaN, then filled with the rows' contexts through permuted tables.

    The shape tells of a layer with ``features``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    num_query_heads, num_kv_heads = heads
    blocks = [-(-context // block_size) for _, context in rows]
    num_blocks = sum(blocks) + spare_blocks
    cache = torch.full((num_blocks, 2, num_kv_heads, block_size, head_dim), torch.nan, dtype=dtype)
    ids = torch.randperm(num_blocks, generator=generator)[: sum(blocks)].split(blocks)
    # Entries past a context are ids that no cache has: reading one is an error.
    tables = torch.full((len(rows), max(blocks, default=0) + 2), 2**30, dtype=torch.int32)
    keys, values, slots, positions = [], [], [], []
    for row, (tokens, context) in enumerate(rows):
        tables[row, : blocks[row]] = ids[row]
        k, v = draw(context, num_kv_heads, head_dim), draw(context, num_kv_heads, head_dim)
        where = torch.arange(context)
        row_slots = tables[row, where // block_size].long() * block_size + where % block_size
        kernels.rotary_store_kv(k.clone(), k, v, cache, row_slots)
        keys.append(k)
        values.append(v)
        slots.append(row_slots[context - tokens :])
        positions.append(where[context - tokens :])
    shape = AttentionShape(
        num_query_heads=num_query_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        element_bytes=cache.element_size(),
        max_num_seqs=len(rows),
        max_num_batched_tokens=sum(tokens for tokens, _ in rows),
        max_model_len=max(context for _, context in rows),
        windows=(features.window,),
        soft_cap=features.soft_cap > 0,
        alibi=features.alibi_slopes is not None,
    )
    starts = [sum(tokens for tokens, _ in rows[:row]) for row in range(len(rows) + 1)]
    metadata = kernels.prepare_attention(
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor([context for _, context in rows], dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat(slots),
        positions=torch.cat(positions),
        shape=shape,
    )
    return Step(
        q=draw(starts[-1], num_query_heads, head_dim),
        k=torch.cat(keys),
        v=torch.cat(values),
        cache=cache,
        metadata=metadata,
        shape=shape,
        scale=head_dim**-0.5,
    )


def free_behind(step: Step, window: int) -> None:
    """Blocks that no query of their row sees any more go to somebody else: they hold NaN, and
    their place in the table is an id that no cache has."""
    starts, block_size = step.metadata.query_start_loc.tolist(), step.cache.shape[3]
    for row, context in enumerate(step.metadata.seq_lens.tolist()):
        oldest = context - (starts[row + 1] - starts[row]) - window + 1
        gone = step.metadata.block_tables[row, : max(0, oldest) // block_size]
        (step.cache if step.kv_scales is None else step.kv_scales)[gone.long()] = torch.nan
        gone.fill_(2**30)


def run(step: Step, **options: Any) -> Tensor:
    """Paged attention with scratch that is poisoned first, as a previous step leaves it."""
    workspace = kernels.AttentionWorkspace(step.shape)
    workspace.buffer.fill_(0xFF)
    return kernels.paged_attention(
        step.q, step.cache, step.metadata, scale=step.scale, workspace=workspace, **options
    )

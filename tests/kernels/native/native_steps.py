"""Steps of attention as native kernels see them: float32 queries, whatever the cache holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import kernels
from kernels import AttentionFeatures, reference
from kernels.backends import NATIVE_CPU, attention_workspace_bytes
from kernels.cpu.native.attention import paged
from kernels.dispatch import using
from tests.kernels.attention_cases import PLAIN, Step, make_step

PLAIN_CACHES = [torch.float32, torch.bfloat16, torch.float16]
CACHES = [*PLAIN_CACHES, torch.int8]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Programs run on so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepared(step: Step, rows: slice, tokens: slice) -> Step:
    """Some rows of a step, and some of their tokens, as a step of its own."""
    whole = step.metadata
    starts = whole.query_start_loc[rows.start : rows.stop + 1] - tokens.start
    ends = whole.query_start_loc[rows.start + 1 : rows.stop + 1]
    first = starts.clamp(0, tokens.stop - tokens.start)
    # The tokens that are left out at a row's end are not in its context yet.
    later = (ends - tokens.stop).clamp(min=0)
    with using(NATIVE_CPU):
        metadata = kernels.prepare_attention(
            query_start_loc=first,
            seq_lens=whole.seq_lens[rows] - later,
            block_tables=whole.block_tables[rows],
            slot_mapping=whole.slot_mapping[tokens],
            positions=whole.positions[tokens],
            shape=step.shape,
        )
    return replace(step, q=step.q[tokens].float(), metadata=metadata)


def native_step(rows: list[tuple[int, int]], **options: Any) -> Step:
    """As make_step; ``dtype`` is the cache's. Scales of an int8 one are NaN where nothing is."""
    if options.get("dtype") is torch.int8:
        step = _quantised(make_step(rows, **{**options, "dtype": torch.float32}))
    else:
        step = make_step(rows, **options)
    return prepared(step, slice(0, len(rows)), slice(0, step.q.shape[0]))


def _quantised(step: Step) -> Step:
    heads = step.cache.view(-1, step.cache.shape[4])
    scales = reference.quantise_heads(heads, torch.int8)[1]
    numbers, _ = reference.quantise_heads(heads.nan_to_num(), torch.int8)
    return replace(
        step,
        cache=numbers.view(step.cache.shape),
        kv_scales=scales.view(step.cache.shape[:4]),
    )


def attend(step: Step, features: AttentionFeatures = PLAIN, *, shared: bool = True) -> Tensor:
    """Attention with poisoned scratch; with none where contexts are not to be ``shared`` out."""
    size = attention_workspace_bytes(step.shape, NATIVE_CPU) if shared else 0
    scratch = torch.full((size,), 0xFF, dtype=torch.uint8) if size else None
    return paged(step.q, step.cache, step.metadata, step.scale, scratch, features, step.kv_scales)


def wanted(step: Step, features: AttentionFeatures = PLAIN) -> Tensor:
    """What the reference says, of the values that the cache has."""
    return reference.paged_attention(
        step.q,
        step.cache.float(),
        step.metadata,
        scale=step.scale,
        features=features,
        kv_scales=step.kv_scales,
    )

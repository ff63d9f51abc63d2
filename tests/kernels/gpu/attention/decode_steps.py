"""Decode attention run on random steps, whatever is not its business poisoned."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kernels import reference
from kernels.backends import TRITON_CUDA, attention_workspace_bytes
from kernels.gpu import decode_work
from kernels.gpu.decode_work import AttentionWork
from kernels.gpu.paged_decode import decode
from kernels.types import PLAIN, AttentionFeatures, AttentionMetadata
from tests.kernels.attention_cases import Step, make_step

# The reference works in float32 on the same stored values, so these bound the kernel's own error.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def poisoned_buffer(step: Step, device: torch.device) -> Tensor:
    size = attention_workspace_bytes(step.shape, TRITON_CUDA)
    return torch.full((size,), 0xFF, dtype=torch.uint8, device=device)


def planned(
    step: Step, device: torch.device, *, programs: int = 0, least_tiles: int = 1
) -> AttentionWork:
    """The step's work in a poisoned workspace; the usual number of programs if 0."""
    work = decode_work.plan(step.shape, poisoned_buffer(step, device))
    return replace(work, programs=programs or work.programs, least_tiles=least_tiles)


def metadata_on(step: Step, device: torch.device) -> AttentionMetadata:
    given = step.metadata
    return replace(
        given,
        query_start_loc=given.query_start_loc.to(device),
        seq_lens=given.seq_lens.to(device),
        block_tables=given.block_tables.to(device),
        slot_mapping=given.slot_mapping.to(device),
        positions=given.positions.to(device),
        work=None,
    )


def features_on(features: AttentionFeatures, device: torch.device) -> AttentionFeatures:
    slopes, sinks = features.alibi_slopes, features.sinks
    return replace(
        features,
        alibi_slopes=None if slopes is None else slopes.to(device),
        sinks=None if sinks is None else sinks.to(device),
    )


def run(
    step: Step,
    device: torch.device,
    *,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
    work: AttentionWork | None = None,
    programs: int = 0,
) -> Tensor:
    """What decode attention writes, on the CPU; NaN where it writes nothing."""
    metadata = metadata_on(step, device)
    if work is None:
        shape = replace(step.shape, windows=(features.window,))
        work = planned(replace(step, shape=shape), device, programs=programs)
        work.build(metadata)
    out = torch.full(step.q.shape, torch.nan, dtype=step.q.dtype, device=device)
    decode(
        step.q.to(device),
        step.cache.to(device),
        metadata,
        work,
        step.scale,
        features_on(features, device),
        None if kv_scales is None else kv_scales.to(device),
        out,
    )
    return out.cpu()


def wanted(
    step: Step, *, features: AttentionFeatures = PLAIN, kv_scales: Tensor | None = None
) -> Tensor:
    return reference.paged_attention(
        step.q.float(),
        step.cache.float(),
        step.metadata,
        scale=step.scale,
        features=features,
        kv_scales=kv_scales,
    )


def check(
    step: Step,
    device: torch.device,
    *,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
    programs: int = 0,
) -> None:
    got = run(step, device, features=features, kv_scales=kv_scales, programs=programs)
    assert got.dtype is step.q.dtype
    torch.testing.assert_close(
        got.float(),
        wanted(step, features=features, kv_scales=kv_scales),
        rtol=0,
        atol=TOLERANCE[step.q.dtype],
    )


def decode_step(contexts: list[int], **options: object) -> Step:
    """One token for every context."""
    return make_step([(1, context) for context in contexts], **options)  # type: ignore[arg-type]


def quantised(step: Step, dtype: torch.dtype) -> tuple[Step, Tensor]:
    """The step with its cache in ``dtype``, and the scales; both poisoned where the cache was."""
    values = step.cache.float()
    largest = 127.0 if dtype is torch.int8 else 448.0
    scales = values.abs().amax(dim=-1) / largest  # NaN where the slot is
    numbers = values / scales.unsqueeze(-1)
    if dtype is torch.int8:
        numbers = numbers.nan_to_num(nan=127.0).round()
    return replace(step, cache=numbers.to(dtype)), scales

"""Choosing tokens, native: the best one and a draw from all.

Rows whose logits change before they are looked at, or of which some tokens are left out, are
torch's (kernels.cpu.sampling), to the same token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu import sampling
from kernels.cpu.native import structs
from kernels.cpu.native.program import address, of_tokens, run_alone, run_once
from kernels.types import SampleOutput, SamplingTensors

ALONE = 1 << 16  # logits that one thread has seen before others would be awake


def sample(logits: Tensor, params: SamplingTensors) -> SampleOutput:
    """As kernels.sample."""
    draws = bool(params.temperature.numpy().any())
    if _changes(params) or (draws and (params.key is None or params.position is None)):
        return sampling.sample(logits, params)  # which says what is missing
    rows, vocab = logits.shape
    token_ids = torch.empty(rows, dtype=torch.int64)
    non_finite = torch.empty(rows, dtype=torch.bool)
    kept = logits.contiguous()
    call = structs.Sample(
        address(kept),
        vocab,
        address(params.temperature),
        address(params.key),
        address(params.position),
        address(token_ids),
        address(non_finite),
    )
    run = run_alone if kept.numel() <= ALONE else run_once
    run(call, of_tokens(rows))
    return SampleOutput(token_ids, non_finite)


def _changes(params: SamplingTensors) -> bool:
    """Whether some row is not simply its logits and a temperature."""
    given = (
        *(params.top_k, params.top_p, params.min_p, params.presence, params.frequency),
        *(params.repetition, params.bias, params.forbidden, params.bitmask),
    )
    return any(one is not None for one in given)

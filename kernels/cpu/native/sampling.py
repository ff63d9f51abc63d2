"""Choosing tokens, native: the best one, or a draw from all or from the best.

What changes logits before they are looked at (penalties, biases, forbidden tokens) is torch's, of
the rows that ask for it; every row is then chosen for natively, so that none depends on what
another asks for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu import sampling
from kernels.cpu.native import structs
from kernels.cpu.native.program import address, of_tokens, run_alone, run_once, runtime
from kernels.footprint.native_sampling import scratch_bytes
from kernels.types import SampleOutput, SamplingTensors

ALONE = 1 << 16  # logits that one thread has seen before others would be awake
FORBIDDEN = torch.finfo(torch.float32).min


def sample(logits: Tensor, params: SamplingTensors) -> SampleOutput:
    """As kernels.sample."""
    if (params.key is None or params.position is None) and params.temperature.numpy().any():
        return sampling.sample(logits, params)  # which says what is missing
    rows, vocab = logits.shape
    token_ids = torch.empty(rows, dtype=torch.int64)
    non_finite = torch.empty(rows, dtype=torch.bool)
    if not rows:
        return SampleOutput(token_ids, non_finite)
    kept, unlike = _changed(logits, params) if _changes(params) else (logits.contiguous(), None)
    alone = kept.numel() <= ALONE
    threads = 1 if alone else runtime().pool.threads
    truncates = params.top_k is not None or params.top_p is not None
    scratch = torch.empty(scratch_bytes(vocab, threads), dtype=torch.uint8) if truncates else None
    top_k = None if params.top_k is None else params.top_k.long()
    call = structs.Sample(
        logits=address(kept),
        vocab=vocab,
        temperature=address(params.temperature),
        keys=address(params.key),
        positions=address(params.position),
        top_k=address(top_k),
        top_p=address(params.top_p),
        min_p=address(params.min_p),
        scratch=address(scratch),
        token_ids=address(token_ids),
        non_finite=address(non_finite),
    )
    run = run_alone if alone else run_once
    run(call, of_tokens(rows))
    if unlike is not None:
        non_finite |= unlike
        token_ids.masked_fill_(non_finite, 0)
    return SampleOutput(token_ids, non_finite)


def _changes(params: SamplingTensors) -> bool:
    """Whether logits of some row change before they are looked at."""
    given = (
        *(params.presence, params.frequency, params.repetition),
        *(params.bias, params.forbidden, params.bitmask),
    )
    return any(one is not None for one in given)


def _changed(logits: Tensor, params: SamplingTensors) -> tuple[Tensor, Tensor]:
    """The logits that tokens are chosen by, and which rows were not all numbers before: what
    forbids a token may forbid one that is none."""
    special = sampling.special_rows(logits, params)
    processed = logits.index_select(0, special)
    unlike = torch.zeros(logits.shape[0], dtype=torch.bool)
    unlike[special] = sampling.non_finite_rows(processed)
    sampling.process(processed, special, params)
    return logits.index_copy(0, special, processed.clamp_(min=FORBIDDEN)), unlike

"""One row's part of what a step gave."""

from __future__ import annotations

import numpy as np

from server.engine.request import SamplingParams
from server.engine.step_plan import PlannedRow, RowResult
from server.execution.packing import pack_logprobs
from server.execution.sampler import Sampled, Scored


def row_result(
    planned: PlannedRow,
    params: SamplingParams,
    scored: Scored,
    positions: slice,
    sampled: Sampled,
    choice: int,
) -> RowResult:
    """``positions`` are the row's among those ``scored``; ``choice`` is its place among the rows
    ``sampled``. Each is heeded where the plan asked for it."""
    prompt, finite = None, True
    if planned.num_prompt_logits:
        finite = bool(np.isfinite(scored.logprobs[positions]).all())
        num_top = params.prompt_logprobs or 0
        prompt = pack_logprobs(scored.ids[positions], scored.logprobs[positions], num_top)
    tokens: tuple[int, ...] = ()
    logprobs = None
    if planned.samples:
        finite = finite and not sampled.non_finite[choice]
        if finite:
            tokens = (int(sampled.token_ids[choice]),)
        if finite and params.logprobs is not None:
            at = slice(choice, choice + 1)
            logprobs = pack_logprobs(sampled.logprob_ids[at], sampled.logprobs[at], params.logprobs)
    return RowResult(planned.row, tokens, not finite, logprobs, prompt)

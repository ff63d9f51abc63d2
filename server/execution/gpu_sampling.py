"""What a step's logits are for, decided by the host from the rows' parameters.

The device runs it (server.execution.device_sampler).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.engine.step_plan import StepPlan
from server.execution.gpu_rows import GpuRows, Int64, StepRows
from server.execution.packet import EMPTY, PacketDraft, Span

FEW_LOGPROBS = 5  # what most who ask for alternatives ask for
TEMPERATURE, TOP_P, MIN_P, PRESENCE, FREQUENCY, REPETITION = range(6)  # rows of GpuRows.floats


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``start : stop`` of those that choose a token, and what some of them use.

    Features go in groups, neutral where a row does not use one: a kernel is compiled for each
    combination, and there must be few enough to compile all of them before the first request.
    """

    start: int
    stop: int
    random: bool
    truncates: bool  # top_k, top_p, min_p
    penalises: bool  # presence, frequency, repetition
    bias: tuple[Span, Span, Span]  # rows within the part, ids, values
    forbidden: tuple[Span, Span]  # rows within the part, ids
    asked: Span  # rows within the part that report log-probabilities
    asked_before: int  # how many in the parts before


@dataclass(frozen=True, slots=True)
class SampleWork:
    """What a step's logits are for. Spans are of the step's packet."""

    picks: Span  # [P + S] tokens of the step: those that are scored, then those that are sampled
    num_scored: int  # P
    targets: Span  # [P] words of the row state: the prompt token that follows each scored one
    scored_width: int  # 1 + most alternatives asked for
    rows: Span  # [S] rows that choose a token
    num_sampled: int  # S
    parts: tuple[Part, ...]
    num_asked: int  # A of the S rows report log-probabilities
    asked_width: int  # 1 + most alternatives asked for
    scored_rows: tuple[int, ...]  # [P] the row that asked; for the host alone
    sampled_rows: tuple[int, ...]  # [S] likewise


@dataclass(frozen=True, slots=True)
class SamplingLimits:
    """How many rows of logits exist at once, how many with penalties are worked on at once, and how
    many alternatives may be reported."""

    logit_rows: int
    table_rows: int
    max_logprobs: int

    @property
    def num_tops(self) -> tuple[int, ...]:
        """Numbers of alternatives that are computed, rising. A kernel is compiled for each."""
        return tuple(sorted({0, min(FEW_LOGPROBS, self.max_logprobs), self.max_logprobs}))

    def num_top(self, asked: int) -> int:
        """What is computed where ``asked`` are asked for."""
        return next(number for number in self.num_tops if number >= asked)


def plan_sampling(
    plan: StepPlan,
    state: GpuRows,
    step: StepRows,
    packet: PacketDraft,
    *,
    limits: SamplingLimits,
    eos_token_ids: tuple[int, ...],
) -> SampleWork:
    """Writes down what ``step`` needs of its logits."""
    scored, targets = _scored(plan, state, step)
    sampled = step.starts[1:][step.samples] - 1
    rows = step.rows[step.samples]
    forbidden = [
        (*eos_token_ids, *state.params_of(row.row).stop_token_ids) if row.min_tokens_pending else ()
        for row in plan.rows
        if row.samples
    ]
    num_top = state.num_top[rows]
    return SampleWork(
        picks=packet.put(np.concatenate((scored, sampled))),
        num_scored=len(scored),
        targets=packet.put(targets),
        scored_width=1 + limits.num_top(_most_scored(plan, state)),
        rows=packet.put(rows),
        num_sampled=len(rows),
        parts=_parts(state, rows, forbidden, packet, limits),
        num_asked=int((num_top >= 0).sum()),
        asked_width=1 + limits.num_top(int(num_top.max(initial=0))),
        scored_rows=tuple(row.row for row in plan.rows for _ in range(row.num_prompt_logits)),
        sampled_rows=tuple(rows.tolist()),
    )


def _scored(plan: StepPlan, state: GpuRows, step: StepRows) -> tuple[Int64, Int64]:
    """Tokens of the step whose follower is scored, and where in the row state it is."""
    tokens: list[Int64] = []
    targets: list[Int64] = []
    for row, start, computed in zip(plan.rows, step.starts, step.computed, strict=False):
        if row.num_prompt_logits:
            span = np.arange(row.num_prompt_logits)
            record = row.row * state.layout.words + state.layout.tokens_at
            tokens.append(start + span)
            targets.append(record + computed + 1 + span)
    nothing = np.zeros(0, dtype=np.int64)
    return np.concatenate([nothing, *tokens]), np.concatenate([nothing, *targets])


def _most_scored(plan: StepPlan, state: GpuRows) -> int:
    return max(
        (
            state.params_of(row.row).prompt_logprobs or 0
            for row in plan.rows
            if row.num_prompt_logits
        ),
        default=0,
    )


def _parts(
    state: GpuRows,
    rows: Int64,
    forbidden: Sequence[tuple[int, ...]],
    packet: PacketDraft,
    limits: SamplingLimits,
) -> tuple[Part, ...]:
    size = limits.logit_rows
    if state.tables[rows].any():
        size = min(size, limits.table_rows)
    starts = range(0, len(rows), size)
    return tuple(
        _part(state, rows, start, min(start + size, len(rows)), forbidden, packet)
        for start in starts
    )


def _part(
    state: GpuRows,
    all_rows: Int64,
    start: int,
    stop: int,
    forbidden: Sequence[tuple[int, ...]],
    packet: PacketDraft,
) -> Part:
    rows = all_rows[start:stop]
    floats = state.floats[:, rows]
    random = bool((floats[TEMPERATURE] > 0).any())
    return Part(
        start=start,
        stop=stop,
        random=random,
        truncates=random
        and bool(
            (state.top_k[rows] > 0).any() or (floats[TOP_P] < 1).any() or (floats[MIN_P] > 0).any()
        ),
        penalises=bool(state.tables[rows].any()),
        bias=_bias(state, rows, packet, always=any(forbidden[start:stop])),
        forbidden=_forbidden(forbidden[start:stop], packet),
        asked=packet.put(np.flatnonzero(state.num_top[rows] >= 0)),
        asked_before=int((state.num_top[all_rows[:start]] >= 0).sum()),
    )


def _bias(
    state: GpuRows, rows: Int64, packet: PacketDraft, *, always: bool
) -> tuple[Span, Span, Span]:
    """Where ``always``, one that changes nothing rather than none."""
    counts = state.num_biases[rows]
    if not counts.any():
        if always:
            return packet.put([0]), packet.put([0]), packet.put_floats([0.0])
        return EMPTY, EMPTY, EMPTY
    entries = [
        entry for row in rows[counts > 0].tolist() for entry in state.params_of(row).logit_bias
    ]
    ids, values = zip(*entries, strict=True)
    places = np.repeat(np.arange(len(rows)), counts)
    return packet.put(places), packet.put(ids), packet.put_floats(values)


def _forbidden(forbidden: Sequence[tuple[int, ...]], packet: PacketDraft) -> tuple[Span, Span]:
    lengths = [len(ids) for ids in forbidden]
    places = np.repeat(np.arange(len(lengths)), lengths)
    return packet.put(places), packet.put([token_id for ids in forbidden for token_id in ids])

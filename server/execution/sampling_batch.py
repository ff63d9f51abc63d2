"""What a step's logits are for, decided by the host from the rows' parameters.

The device runs it (server.execution.sampler).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.engine.step_plan import StepPlan
from server.execution.packet import EMPTY, PacketDraft, Span
from server.execution.rows import Feature, Int64, Rows, StepRows
from server.memory.runner_buffers import LogitLimits

NOTHING: Int64 = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``start : stop`` of those that choose a token, and what some of them use.

    Features go in groups, neutral where a row does not use one: a kernel may be compiled for each
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

    @property
    def is_plain(self) -> bool:
        """Tokens are chosen by their logits as they are, and nothing is reported."""
        return not (self.penalises or self.bias[0] or self.forbidden[0] or self.asked)


@dataclass(frozen=True, slots=True)
class SampleWork:
    """What a step's logits are for. Spans are of the step's packet."""

    picks: Span  # [P + S] tokens of the step: those that are scored, then those that are sampled
    picks_all: bool  # every token of the step in its order, so that there is nothing to pick
    num_scored: int  # P
    targets: Span  # [P] words of the row state: the prompt token that follows each scored one
    scored_width: int  # 1 + most alternatives asked for
    rows: Span  # [S] rows that choose a token; where one of them has penalties
    num_sampled: int  # S
    parts: tuple[tuple[Part, ...], ...]  # those whose logits exist at once together
    asked_width: int  # 1 + most alternatives asked for
    scored_rows: tuple[int, ...]  # [P] the row that asked; for the host alone
    sampled_rows: tuple[int, ...]  # [S] likewise

    @property
    def is_plain(self) -> bool:
        """Every token of the step chooses one by its logits as they are, and all of these may
        exist at once."""
        return self.picks_all and len(self.parts) == 1 and all(p.is_plain for p in self.parts[0])

    @property
    def truncates(self) -> bool:
        return any(part.truncates for parts in self.parts for part in parts)


def plan_sampling(
    plan: StepPlan,
    state: Rows,
    step: StepRows,
    packet: PacketDraft,
    *,
    limits: LogitLimits,
    eos_token_ids: tuple[int, ...],
) -> SampleWork:
    """Writes down what ``step`` needs of its logits."""
    scored, targets = _scored(plan, state, step)
    sampled, rows = step.starts[1:] - 1, step.rows
    if not step.all_sample:
        sampled, rows = sampled[step.samples], rows[step.samples]
    forbidden = [
        (*eos_token_ids, *state.params_of(row.row).stop_token_ids) if row.min_tokens_pending else ()
        for row in plan.rows
        if row.samples
    ]
    num_scored, num_sampled = len(scored), len(rows)
    picks_all = num_sampled == step.num_tokens and not num_scored
    penalises = bool(state.features_of(rows) & Feature.PENALISES)
    return SampleWork(
        picks=EMPTY if picks_all else packet.put(np.concatenate((scored, sampled))),
        picks_all=picks_all,
        num_scored=num_scored,
        targets=packet.put(targets),
        scored_width=1 + limits.num_top(_most_scored(plan, state)),
        rows=packet.put(rows) if penalises else EMPTY,
        num_sampled=num_sampled,
        parts=_parts(state, rows, forbidden, packet, limits, penalises=penalises),
        asked_width=1 + limits.num_top(int(state.num_top[rows].max(initial=0))),
        scored_rows=tuple(row.row for row in plan.rows for _ in range(row.num_prompt_logits)),
        sampled_rows=tuple(rows.tolist()),
    )


def _scored(plan: StepPlan, state: Rows, step: StepRows) -> tuple[Int64, Int64]:
    """Tokens of the step whose follower is scored, and where in the row state it is."""
    tokens, targets = [NOTHING], [NOTHING]
    for index, row in enumerate(plan.rows):
        if row.num_prompt_logits:
            span = np.arange(row.num_prompt_logits)
            record = row.row * state.layout.words + state.layout.tokens_at
            tokens.append(step.starts[index] + span)
            targets.append(record + step.computed[index] + 1 + span)
    return np.concatenate(tokens), np.concatenate(targets)


def _most_scored(plan: StepPlan, state: Rows) -> int:
    return max(
        (
            state.params_of(row.row).prompt_logprobs or 0
            for row in plan.rows
            if row.num_prompt_logits
        ),
        default=0,
    )


def _parts(
    state: Rows,
    rows: Int64,
    forbidden: Sequence[tuple[int, ...]],
    packet: PacketDraft,
    limits: LogitLimits,
    *,
    penalises: bool,
) -> tuple[tuple[Part, ...], ...]:
    size = limits.penalised_rows if penalises else limits.sampled_rows
    return tuple(
        tuple(
            _part(state, rows, start, min(start + size, stop), forbidden, packet)
            for start in range(first, stop, size)
        )
        for first, stop in limits.spans(len(rows))
    )


def _part(
    state: Rows,
    all_rows: Int64,
    start: int,
    stop: int,
    forbidden: Sequence[tuple[int, ...]],
    packet: PacketDraft,
) -> Part:
    rows = all_rows[start:stop]
    features = state.features_of(rows)
    random, asks = bool(features & Feature.RANDOM), bool(features & Feature.REPORTS)
    return Part(
        start=start,
        stop=stop,
        random=random,
        truncates=random and bool(features & Feature.TRUNCATES),
        penalises=bool(features & Feature.PENALISES),
        bias=_bias(state, rows, packet, features, always=any(forbidden[start:stop])),
        forbidden=_forbidden(forbidden[start:stop], packet),
        asked=packet.put(np.flatnonzero(state.num_top[rows] >= 0)) if asks else EMPTY,
        asked_before=int((state.num_top[all_rows[:start]] >= 0).sum()) if asks else 0,
    )


def _bias(
    state: Rows, rows: Int64, packet: PacketDraft, features: int, *, always: bool
) -> tuple[Span, Span, Span]:
    """Where ``always``, one that changes nothing rather than none."""
    if not features & Feature.BIASES:
        if always:
            return packet.put([0]), packet.put([0]), packet.put_floats([0.0])
        return EMPTY, EMPTY, EMPTY
    entries = [
        (place, *entry)
        for place, row in enumerate(rows.tolist())
        for entry in state.params_of(row).logit_bias
    ]
    places, ids, values = zip(*entries, strict=True)
    return packet.put(places), packet.put(ids), packet.put_floats(values)


def _forbidden(forbidden: Sequence[tuple[int, ...]], packet: PacketDraft) -> tuple[Span, Span]:
    if not any(forbidden):
        return EMPTY, EMPTY
    places, ids = zip(
        *((place, one) for place, ids in enumerate(forbidden) for one in ids), strict=True
    )
    return packet.put(places), packet.put(ids)

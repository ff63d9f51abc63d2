"""From logits to tokens and log-probabilities on a device, without the host waiting.

The host decides from the rows' parameters what has to be run (``plan_sampling``), the device runs
it (``DeviceSampler``), and what came of it is copied into pinned memory, to be read when the step
is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import kernels
from kernels import SamplingTensors, SparseBias, SparseIds
from server.engine.plan import StepPlan
from server.execution.gpu_rows import GpuRows, Int64, StepRows
from server.execution.out_of_memory import asked_by
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


Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # [R, D], out [R, V] -> out


class DeviceSampler:
    """Runs on the device's stream: nothing here waits or reads back.

    ``buffers`` are the layout's by name. Log-probabilities go straight into the pinned tensors of
    the step's slot.
    """

    def __init__(
        self, buffers: Mapping[str, torch.Tensor], logits: Logits, limits: SamplingLimits
    ) -> None:
        self._rows = buffers["row_state"]
        self._counts = buffers["output_counts"]
        self._mask = buffers["prompt_mask"]
        self._floats = buffers["step_floats"]
        self._top_k = buffers["step_top_k"]
        self._keys = buffers["step_keys"]
        self._positions = buffers["step_output_positions"]
        self._logits_buffer = buffers["logits"]
        self._token_ids = buffers["chosen_ids"]
        self._non_finite = buffers["chosen_non_finite"]
        self._logits = logits
        self._limits = limits

    def score(
        self,
        work: SampleWork,
        packet: torch.Tensor,
        hidden: torch.Tensor,
        pinned: Mapping[str, torch.Tensor],
    ) -> None:
        """Log-probabilities of the prompt tokens that follow ``hidden`` [P, D]."""
        # As wide as chosen tokens are, so that one compiled kernel reports on either.
        targets = self._rows.view(-1).index_select(0, work.targets.of(packet)).long()
        for start in range(0, work.num_scored, self._limits.logit_rows):
            stop = min(start + self._limits.logit_rows, work.num_scored)
            with asked_by(work.scored_rows[start:stop]):
                logits = self._logits(hidden[start:stop], self._logits_buffer[: stop - start])
                width = work.scored_width
                reported = kernels.token_logprobs(logits, targets[start:stop], width - 1)
                _download(reported, pinned, "scored", start, width)

    def choose(
        self,
        work: SampleWork,
        packet: torch.Tensor,
        hidden: torch.Tensor | None,
        pinned: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [S] int64 and non-finite flags [S] bool, in persistent buffers.

        ``hidden`` is [S, D]; None where the logits of all rows are in their buffer already.
        """
        for part in work.parts:
            with asked_by(work.sampled_rows[part.start : part.stop]):
                self._choose_part(work, part, packet, hidden, pinned)
        sampled = slice(0, work.num_sampled)
        return self._token_ids[sampled], self._non_finite[sampled]

    def _choose_part(
        self,
        work: SampleWork,
        part: Part,
        packet: torch.Tensor,
        hidden: torch.Tensor | None,
        pinned: Mapping[str, torch.Tensor],
    ) -> None:
        rows = slice(part.start, part.stop)
        if hidden is None:
            logits = self._logits_buffer[rows]
        else:
            room = self._logits_buffer[: part.stop - part.start]
            logits = self._logits(hidden[rows], room)
        chosen = kernels.sample(logits, self._tensors(work, part, packet))
        self._token_ids[rows].copy_(chosen.token_ids)
        self._non_finite[rows].copy_(chosen.non_finite)
        if part.asked:
            reported = self._reported(part, packet, logits, chosen.token_ids, work.asked_width)
            _download(reported, pinned, "chosen", part.asked_before, work.asked_width)

    def _tensors(self, work: SampleWork, part: Part, packet: torch.Tensor) -> SamplingTensors:
        """The kernel's parameters: only the parts that some row uses."""
        rows = slice(part.start, part.stop)
        counts = mask = None
        if part.penalises:
            index = work.rows.of(packet)[rows]
            counts, mask = self._counts.index_select(0, index), self._mask.index_select(0, index)
        return SamplingTensors(
            temperature=self._floats[TEMPERATURE, rows],
            top_k=self._top_k[rows] if part.truncates else None,
            top_p=self._floats[TOP_P, rows] if part.truncates else None,
            min_p=self._floats[MIN_P, rows] if part.truncates else None,
            presence=self._floats[PRESENCE, rows] if part.penalises else None,
            frequency=self._floats[FREQUENCY, rows] if part.penalises else None,
            repetition=self._floats[REPETITION, rows] if part.penalises else None,
            output_counts=counts,
            prompt_mask=mask,
            key=self._keys[rows] if part.random else None,
            position=self._positions[rows] if part.random else None,
            bias=_sparse_bias(part, packet),
            forbidden=_sparse_ids(part, packet),
        )

    def _reported(
        self,
        part: Part,
        packet: torch.Tensor,
        logits: torch.Tensor,
        token_ids: torch.Tensor,
        width: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the part's rows that ask; all widths are the widest."""
        if part.asked.length < part.stop - part.start:
            index = part.asked.of(packet)
            logits, token_ids = logits.index_select(0, index), token_ids.index_select(0, index)
        return kernels.token_logprobs(logits, token_ids, width - 1)


def _sparse_bias(part: Part, packet: torch.Tensor) -> SparseBias | None:
    rows, ids, values = part.bias
    if not rows:
        return None
    return SparseBias(
        rows=rows.of(packet).long(),
        ids=ids.of(packet).long(),
        values=values.of(packet).view(torch.float32),
    )


def _sparse_ids(part: Part, packet: torch.Tensor) -> SparseIds | None:
    rows, ids = part.forbidden
    return SparseIds(rows.of(packet).long(), ids.of(packet).long()) if rows else None


def _download(
    reported: tuple[torch.Tensor, torch.Tensor],
    pinned: Mapping[str, torch.Tensor],
    kind: str,
    first: int,
    width: int,
) -> None:
    """Into rows ``first`` and after of the step's report, rows of ``width``."""
    ids, logprobs = reported
    span = slice(first * width, (first + ids.shape[0]) * width)
    name = {"chosen": "chosen_logprob_ids", "scored": "scored_ids"}[kind]
    pinned[name][span].copy_(ids.reshape(-1), non_blocking=True)
    pinned[f"{kind}_logprobs"][span].copy_(logprobs.reshape(-1), non_blocking=True)

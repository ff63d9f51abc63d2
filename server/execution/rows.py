"""The host's side of the rows on a device: lengths and parameters, never tokens.

Where a row's next token goes follows from what was planned, so the host counts a token that is
still being chosen as if it were there. What the plan says about rows is written down as segments
of a packet, which kernels.write_rows puts into the rows' records.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from kernels import as_int64, derive_key
from kernels.footprint import row_state
from kernels.footprint.row_state import RowLayout
from server.engine.request import SamplingParams
from server.engine.step_plan import AdmittedRow, PlannedRow, StepPlan
from server.execution.out_of_memory import attribute_oom
from server.execution.packet import PacketDraft, Span

Int64 = npt.NDArray[np.int64]


class Feature(IntFlag):
    """What a row asks of the sampler, so that one question tells it of many rows."""

    RANDOM = 1  # a temperature above 0
    TRUNCATES = 2  # top_k, top_p, min_p
    PENALISES = 4  # presence, frequency, repetition
    BIASES = 8
    REPORTS = 16  # log-probabilities of its tokens


@dataclass(frozen=True, slots=True)
class RowChanges:
    """What a plan does to records on the device, as spans of its packet."""

    segments: Span  # for kernels.write_rows
    counted: Span  # for kernels.count_tokens

    def __bool__(self) -> bool:
        return bool(self.segments)


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a step, in the order of the plan. All on the host."""

    rows: Int64  # [B]
    starts: Int64  # [B + 1] of each row's tokens among the step's
    computed: Int64  # [B] tokens of its context before this step
    samples: npt.NDArray[np.bool_]  # [B]
    all_sample: bool
    num_decode_steps: int  # tokens that each row is given; above 1 each computes one at a time
    outputs: Int64  # [B] index of the token to choose among the generated ones
    max_query_len: int
    max_seq_len: int  # contexts with this step's tokens, at its end

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        return int(self.starts[-1])

    @property
    def places(self) -> Int64:
        """[B] each row's place among those that choose a token, -1 for none."""
        if self.all_sample:
            return np.arange(len(self.rows))
        return np.where(self.samples, np.cumsum(self.samples) - 1, -1)


class Rows:
    """Lengths and sampling parameters by row."""

    def __init__(self, layout: RowLayout, *, max_num_seqs: int, block_size: int) -> None:
        self.layout = layout
        self.block_size = block_size
        self._lengths = np.zeros((4, max_num_seqs), dtype=np.int64)
        self.num_tokens, self.num_computed, self.num_prompt, self.num_blocks = self._lengths
        self._held = np.zeros((layout.groups, max_num_seqs), dtype=np.int64)  # blocks by group
        self.params: list[SamplingParams | None] = [None] * max_num_seqs
        # Of the same, for questions about many rows at once.
        self._features = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_top = np.zeros(max_num_seqs, dtype=np.int64)  # -1: nothing is reported

    def apply(self, plan: StepPlan, packet: PacketDraft) -> RowChanges:
        """Releases, admits and extends rows, in the plan's order of effects.

        Raises:
            ValueError: the plan asks for more than a row can hold.
        """
        for row in plan.released:
            self._release(row)
        segments: list[int] = []
        counted: list[int] = []
        for admitted in plan.admitted:
            with attribute_oom((admitted.row,)):
                segments += self._admit(admitted, packet)
            if tables_read(admitted.sampling):
                counted += (admitted.row, admitted.num_prompt_tokens, len(admitted.token_ids))
        for planned in plan.rows:
            for group, block_ids in enumerate(planned.new_block_ids):
                if block_ids:
                    segments += self._extend(planned.row, group, block_ids, packet)
        return RowChanges(packet.put(segments), packet.put(counted))

    def step(self, planned: tuple[PlannedRow, ...], num_decode_steps: int = 1) -> StepRows:
        """The rows of one forward pass, or of several of one token a row; then counts their tokens
        as computed.

        Raises:
            ValueError: a row is asked for tokens that it does not have or has no slots for.
        """
        later = num_decode_steps - 1  # tokens that each row is given before its last
        asked = [(row.row, row.num_scheduled_tokens - later, row.samples) for row in planned]
        rows, counts, chooses = np.array(asked, dtype=np.int64).T
        samples = chooses.astype(np.bool_)
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        counts.cumsum(out=starts[1:])
        known, computed, prompt, blocks = self._lengths[:, rows]
        ends = computed + counts
        stored = ends + later
        bad = (ends > known) | (stored > blocks * self.block_size) | samples & (ends < known)
        if later:
            bad |= (counts != 1) | ~samples
        if bad.any():
            index = int(bad.argmax())
            self._refuse(int(rows[index]), int(ends[index]), later)
        self.num_computed[rows] = stored
        return StepRows(
            rows,
            starts,
            computed,
            samples,
            all_sample=bool(samples.all()),
            num_decode_steps=num_decode_steps,
            outputs=ends - prompt,
            max_query_len=int(counts.max()),
            max_seq_len=int(stored.max()),
        )

    def append(self, step: StepRows) -> None:
        """Counts the tokens that rows of a step are choosing as theirs.

        Raises:
            ValueError: a row is full.
        """
        if step.max_seq_len >= self.layout.max_tokens:
            room = self.layout.max_tokens - self.num_tokens[step.rows]
            full = step.samples & (room < step.num_decode_steps)
            if full.any():
                row = int(step.rows[np.argmax(full)])
                raise ValueError(
                    f"row {row} holds {self.num_tokens[row]} tokens, and has no room for"
                    f" {step.num_decode_steps} more: max_model_len is {self.layout.max_tokens}"
                )
        self.num_tokens[step.rows] += step.samples * step.num_decode_steps

    def params_of(self, row: int) -> SamplingParams:
        params = self.params[row]
        if params is None:
            raise ValueError(f"row {row} holds no sequence")
        return params

    def features_of(self, rows: Int64) -> int:
        """Every Feature that one of ``rows`` has."""
        return int(np.bitwise_or.reduce(self._features[rows]))

    def _refuse(self, row: int, end: int, later: int) -> NoReturn:
        known, blocks = self.num_tokens[row], self.num_blocks[row]
        if end > known:
            raise ValueError(f"row {row} knows {known} tokens: more are scheduled")
        if end + later > blocks * self.block_size:
            raise ValueError(f"row {row} has {blocks} blocks: too few for its tokens")
        if end == known:
            raise ValueError(
                f"row {row} is to be given {later + 1} tokens and computes more than one"
            )
        raise ValueError(f"row {row} is to choose a token before its last one is computed")

    def _admit(self, admitted: AdmittedRow, packet: PacketDraft) -> list[int]:
        """Segments: the record's head with the first block table, its tokens, the other tables."""
        row, tables = admitted.row, admitted.block_tables
        held = [len(table) for table in tables]
        if len(tables) != self.layout.groups:
            raise ValueError(
                f"row {row} is given {len(tables)} block tables; the KV cache has"
                f" {self.layout.groups} groups"
            )
        if max(held) > self.layout.max_blocks or len(admitted.token_ids) > self.layout.max_tokens:
            raise ValueError(
                f"row {row} is given {len(admitted.token_ids)} tokens and {max(held)} blocks;"
                f" it holds {self.layout.max_tokens} and {self.layout.max_blocks}"
            )
        self._held[:, row] = held
        self._lengths[:, row] = (
            len(admitted.token_ids),
            admitted.num_computed_tokens,
            admitted.num_prompt_tokens,
            min(held),
        )
        params = self.params[row] = admitted.sampling
        self._features[row] = features(params)
        self.num_top[row] = -1 if params.logprobs is None else params.logprobs
        head = packet.put((*record_head(params, admitted.choice), *tables[0]))
        tokens = packet.put(admitted.token_ids)
        at = self.layout.tokens_at
        segments = [row, 0, head.first, head.length, row, at, tokens.first, tokens.length]
        for group, table in enumerate(tables[1:], start=1):
            span = packet.put(table)
            segments += (row, self.layout.table_at(group), span.first, span.length)
        return segments

    def _extend(
        self, row: int, group: int, block_ids: tuple[int, ...], packet: PacketDraft
    ) -> list[int]:
        held = int(self._held[group, row])
        if held + len(block_ids) > self.layout.max_blocks:
            raise ValueError(
                f"row {row} would have {held + len(block_ids)} blocks; it holds"
                f" {self.layout.max_blocks}"
            )
        self._held[group, row] = held + len(block_ids)
        self.num_blocks[row] = self._held[:, row].min()
        span = packet.put(block_ids)
        return [row, self.layout.table_at(group) + held, span.first, span.length]

    def _release(self, row: int) -> None:
        self._lengths[:, row] = 0
        self.params[row] = None


def features(params: SamplingParams) -> Feature:
    found = Feature(0)
    if params.temperature > 0:
        found |= Feature.RANDOM
    if params.top_k > 0 or params.top_p < 1 or params.min_p > 0:
        found |= Feature.TRUNCATES
    if tables_read(params):
        found |= Feature.PENALISES
    if params.logit_bias:
        found |= Feature.BIASES
    if params.logprobs is not None:
        found |= Feature.REPORTS
    return found


def tables_read(params: SamplingParams) -> int:
    """Which tables the penalties read: a sum of row_state.COUNTS_OUTPUT and COUNTS_PROMPT."""
    if params.repetition_penalty != 1.0:
        return row_state.COUNTS_OUTPUT + row_state.COUNTS_PROMPT
    if params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
        return row_state.COUNTS_OUTPUT
    return 0


def record_head(params: SamplingParams, choice: int) -> tuple[int, ...]:
    """The words of a record before its block table."""
    key = struct.pack("<q", as_int64(derive_key(params.seed, choice)))
    floats = struct.pack(
        "<6f",  # in the order of row_state.FLOATS_AT
        params.temperature,
        params.top_p,
        params.min_p,
        params.presence_penalty,
        params.frequency_penalty,
        params.repetition_penalty,
    )
    head = (tables_read(params), params.top_k, *struct.unpack("<8i", key + floats))
    return (*head, *(0,) * (row_state.TABLE_AT - len(head)))

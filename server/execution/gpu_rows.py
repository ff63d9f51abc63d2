"""The host's side of the rows on a device: lengths and parameters, never tokens.

Where a row's next token goes follows from what was planned, so the host counts a token that is
still being chosen as if it were there. What the plan says about rows is written down as segments
of a packet, which kernels.write_rows puts into the rows' records.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class RowChanges:
    """What a plan does to records on the device, as spans of its packet."""

    segments: Span  # for kernels.write_rows
    counted: Span  # for kernels.count_tokens


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a step, in the order of the plan. All on the host."""

    rows: Int64  # [B]
    starts: Int64  # [B + 1] of each row's tokens among the step's
    computed: Int64  # [B] tokens of its context before this step
    ends: Int64  # [B] its context with this step's tokens
    samples: npt.NDArray[np.bool_]  # [B]
    outputs: Int64  # [B] index of the token to choose among the generated ones

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        return int(self.starts[-1])

    @property
    def max_query_len(self) -> int:
        return int((self.ends - self.computed).max())

    @property
    def max_seq_len(self) -> int:
        return int(self.ends.max())

    @property
    def places(self) -> Int64:
        """[B] each row's place among those that choose a token, -1 for none."""
        return np.where(self.samples, np.cumsum(self.samples) - 1, -1)


class GpuRows:
    """Lengths and sampling parameters by row."""

    def __init__(self, layout: RowLayout, *, max_num_seqs: int, block_size: int) -> None:
        self.layout = layout
        self.block_size = block_size
        self._lengths = np.zeros((4, max_num_seqs), dtype=np.int64)
        self.num_tokens, self.num_computed, self.num_prompt, self.num_blocks = self._lengths
        self.params: list[SamplingParams | None] = [None] * max_num_seqs
        # The same, for questions about many rows at once.
        self.floats = np.zeros((row_state.NUM_FLOATS, max_num_seqs), dtype=np.float32)
        self._facts = np.zeros((4, max_num_seqs), dtype=np.int64)
        self.top_k, self.tables, self.num_top, self.num_biases = self._facts

    def apply(self, plan: StepPlan, packet: PacketDraft) -> RowChanges:
        """Releases, admits and extends rows, in the plan's order of effects.

        Raises:
            ValueError: the plan asks for an adapter, or for more than a row can hold.
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
            if planned.new_block_ids and planned.new_block_ids[0]:
                segments += self._extend(planned.row, planned.new_block_ids[0], packet)
        return RowChanges(packet.put(segments), packet.put(counted))

    def step(self, planned: tuple[PlannedRow, ...]) -> StepRows:
        """The rows of one forward pass; then counts its tokens as computed.

        Raises:
            ValueError: a row is asked for tokens that it does not have or has no slots for.
        """
        rows = np.array([row.row for row in planned], dtype=np.int64)
        counts = np.array([row.num_scheduled_tokens for row in planned], dtype=np.int64)
        samples = np.array([row.samples for row in planned], dtype=np.bool_)
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=starts[1:])
        computed = self.num_computed[rows]
        ends = computed + counts
        self._check(rows, ends, samples)
        self.num_computed[rows] = ends
        return StepRows(rows, starts, computed, ends, samples, ends - self.num_prompt[rows])

    def append(self, rows: Int64) -> None:
        """Counts the tokens that these rows are choosing as theirs.

        Raises:
            ValueError: a row is full.
        """
        full = self.num_tokens[rows] >= self.layout.max_tokens
        if full.any():
            row = int(rows[np.argmax(full)])
            raise ValueError(
                f"row {row} already holds max_model_len = {self.layout.max_tokens} tokens"
            )
        self.num_tokens[rows] += 1

    def params_of(self, row: int) -> SamplingParams:
        params = self.params[row]
        if params is None:
            raise ValueError(f"row {row} holds no sequence")
        return params

    def _check(self, rows: Int64, ends: Int64, samples: npt.NDArray[np.bool_]) -> None:
        known = self.num_tokens[rows]
        if (ends > known).any():
            row = int(rows[np.argmax(ends > known)])
            raise ValueError(f"row {row} knows {self.num_tokens[row]} tokens: more are scheduled")
        early = samples & (ends < known)
        if early.any():
            row = int(rows[np.argmax(early)])
            raise ValueError(f"row {row} is to choose a token before its last one is computed")
        room = self.num_blocks[rows] * self.block_size
        if (ends > room).any():
            row = int(rows[np.argmax(ends > room)])
            raise ValueError(f"row {row} has {self.num_blocks[row]} blocks: too few for its tokens")

    def _admit(self, admitted: AdmittedRow, packet: PacketDraft) -> list[int]:
        """Two segments: the record's head with the block table, and the known tokens."""
        row, blocks = admitted.row, admitted.block_tables[0]
        if len(blocks) > self.layout.max_blocks or len(admitted.token_ids) > self.layout.max_tokens:
            raise ValueError(
                f"row {row} is given {len(admitted.token_ids)} tokens and {len(blocks)} blocks;"
                f" it holds {self.layout.max_tokens} and {self.layout.max_blocks}"
            )
        self._lengths[:, row] = (
            len(admitted.token_ids),
            admitted.num_computed_tokens,
            admitted.num_prompt_tokens,
            len(blocks),
        )
        self._set_params(row, admitted.sampling)
        head = packet.put((*record_head(admitted.sampling, admitted.choice), *blocks))
        tokens = packet.put(admitted.token_ids)
        at = self.layout.tokens_at
        return [row, 0, head.first, head.length, row, at, tokens.first, tokens.length]

    def _set_params(self, row: int, params: SamplingParams) -> None:
        self.params[row] = params
        self.floats[:, row] = _floats(params)
        self._facts[:, row] = (
            params.top_k,
            tables_read(params),
            -1 if params.logprobs is None else params.logprobs,
            len(params.logit_bias),
        )

    def _extend(self, row: int, block_ids: tuple[int, ...], packet: PacketDraft) -> list[int]:
        held = int(self.num_blocks[row])
        if held + len(block_ids) > self.layout.max_blocks:
            raise ValueError(
                f"row {row} would have {held + len(block_ids)} blocks; it holds"
                f" {self.layout.max_blocks}"
            )
        self.num_blocks[row] = held + len(block_ids)
        span = packet.put(block_ids)
        return [row, row_state.TABLE_AT + held, span.first, span.length]

    def _release(self, row: int) -> None:
        self._lengths[:, row] = 0
        self.params[row] = None


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
    words = struct.unpack("<8i", key + struct.pack("<6f", *_floats(params)))
    head = (tables_read(params), params.top_k, *words)
    return (*head, *(0,) * (row_state.TABLE_AT - len(head)))


def _floats(params: SamplingParams) -> tuple[float, ...]:
    """In the order of row_state.FLOATS_AT."""
    return (
        params.temperature,
        params.top_p,
        params.min_p,
        params.presence_penalty,
        params.frequency_penalty,
        params.repetition_penalty,
    )

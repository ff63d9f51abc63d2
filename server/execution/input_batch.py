"""The rows of running sequences, and the arrays that a step reads, made from them.

A row keeps what outlives a step: its known tokens, how many of them are computed, its block table
and its sampling state. A plan changes rows, then names those that take part; positions, slots and
lengths follow by array arithmetic, without a Python loop over tokens.

    token_ids[row]    | prompt ............ | generated ...... |
                      0            num_prompt            num_tokens
                      | computed ...... | this step |
                      0      num_computed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from server.engine.step_plan import AdmittedRow, PlannedRow, StepPlan
from server.execution.out_of_memory import attribute_oom
from server.execution.row_sampling import RowSampling

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's arrays: T tokens of B rows, in the order of the plan. Views of io buffers."""

    rows: Int64  # [B]
    token_ids: Int64  # [T]
    positions: Int64  # [T]
    slot_mapping: Int64  # [T] block_id * block_size + offset
    query_start_loc: Int32  # [B + 1]
    seq_lens: Int32  # [B] context, this step's tokens included
    block_tables: Int32  # [B, blocks of the longest context]


class InputBatch:
    """Rows by number, kept in the buffers of the layout (numpy views of CPU tensors)."""

    def __init__(
        self, buffers: Mapping[str, torch.Tensor], *, block_size: int, vocab_size: int
    ) -> None:
        self.block_size = block_size
        self.token_ids: Int32 = buffers["token_ids"].numpy()
        self.block_tables: Int32 = buffers["block_tables"].numpy()
        lengths: Int64 = buffers["row_lengths"].numpy()
        self.num_tokens, self.num_computed, self.num_prompt, self.num_blocks = lengths
        self.sampling = RowSampling(buffers, vocab_size=vocab_size)
        self._step = {
            name: buffers[name].numpy()
            for name in (
                "step_token_ids",
                "positions",
                "slot_mapping",
                "query_start_loc",
                "seq_lens",
                "step_block_tables",
            )
        }

    def apply(self, plan: StepPlan) -> None:
        """Releases, admits and extends rows as ``plan`` says, in its order of effects."""
        for row in plan.released:
            self._release(row)
        for admitted in plan.admitted:
            with attribute_oom((admitted.row,)):
                self._admit(admitted)
        for planned in plan.rows:
            if planned.new_block_ids:
                self._extend(planned.row, planned.new_block_ids[0])

    def step_inputs(self, planned: tuple[PlannedRow, ...]) -> StepInputs:
        """The arrays of one forward pass; then counts its tokens as computed.

        Raises:
            ValueError: a row is asked for tokens that it does not know or has no slots for.
        """
        rows = np.array([row.row for row in planned], dtype=np.int64)
        counts = np.array([row.num_scheduled_tokens for row in planned], dtype=np.int64)
        ends = self.num_computed[rows] + counts
        self._check(rows, ends)
        inputs = self._fill(rows, counts, ends)
        self.num_computed[rows] = ends
        return inputs

    def append(self, row: int, token_id: int) -> None:
        """Takes the token that a row sampled as its last known one."""
        position = int(self.num_tokens[row])
        if position >= self.token_ids.shape[1]:
            raise ValueError(f"row {row} already holds max_model_len = {position} tokens")
        self.token_ids[row, position] = token_id
        self.num_tokens[row] = position + 1
        self.sampling.count(row, token_id)

    def _fill(self, rows: Int64, counts: Int64, ends: Int64) -> StepInputs:
        num_rows, tokens = len(rows), int(counts.sum())
        step = self._step
        starts = step["query_start_loc"][: num_rows + 1]
        starts[0] = 0
        np.cumsum(counts, out=starts[1:])
        of_token = np.repeat(np.arange(num_rows), counts)  # [T] index into ``rows``
        row_of_token = rows[of_token]
        # Position of token t = its row's computed count + its index within the row's chunk.
        first = self.num_computed[rows] - starts[:-1]
        positions = step["positions"][:tokens]
        positions[:] = first[of_token] + np.arange(tokens)
        token_ids = step["step_token_ids"][:tokens]
        token_ids[:] = self.token_ids[row_of_token, positions]
        slots = step["slot_mapping"][:tokens]
        block, offset = np.divmod(positions, self.block_size)
        slots[:] = self.block_tables[row_of_token, block].astype(np.int64) * self.block_size
        slots += offset
        seq_lens = step["seq_lens"][:num_rows]
        seq_lens[:] = ends
        width = -(-int(ends.max()) // self.block_size)
        tables = step["step_block_tables"].reshape(-1)[: num_rows * width].reshape(num_rows, width)
        np.take(self.block_tables[:, :width], rows, axis=0, out=tables)
        return StepInputs(rows, token_ids, positions, slots, starts, seq_lens, tables)

    def _check(self, rows: Int64, ends: Int64) -> None:
        if (ends > self.num_tokens[rows]).any():
            row = int(rows[np.argmax(ends > self.num_tokens[rows])])
            raise ValueError(f"row {row} knows {self.num_tokens[row]} tokens: more are scheduled")
        if (ends > self.num_blocks[rows] * self.block_size).any():
            row = int(rows[np.argmax(ends > self.num_blocks[rows] * self.block_size)])
            raise ValueError(f"row {row} has {self.num_blocks[row]} blocks: too few for its tokens")

    def _admit(self, admitted: AdmittedRow) -> None:
        """Rebuilds everything about a row from what the plan knows of its sequence."""
        row, tokens = admitted.row, np.array(admitted.token_ids, dtype=np.int32)
        self.token_ids[row, : len(tokens)] = tokens
        self.num_tokens[row] = len(tokens)
        self.num_computed[row] = admitted.num_computed_tokens
        self.num_prompt[row] = admitted.num_prompt_tokens
        self.num_blocks[row] = 0
        self._extend(row, admitted.block_tables[0])
        self.sampling.admit(
            row,
            admitted.sampling,
            choice=admitted.choice,
            prompt=tokens[: admitted.num_prompt_tokens],
            output=tokens[admitted.num_prompt_tokens :],
        )

    def _extend(self, row: int, block_ids: tuple[int, ...]) -> None:
        held = int(self.num_blocks[row])
        self.block_tables[row, held : held + len(block_ids)] = block_ids
        self.num_blocks[row] = held + len(block_ids)

    def _release(self, row: int) -> None:
        for array in (self.num_tokens, self.num_computed, self.num_prompt, self.num_blocks):
            array[row] = 0
        self.sampling.release(row)

"""Whole decode steps as one native program: from rows' records to chosen tokens in them.

Between its packet and its tokens such a step needs nothing of the host: its inputs, the layers, the
logits, the choice and its way into the row are calls. The kernels are those of any other step, so
the tokens are too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.native import structs
from kernels.cpu.native.program import Program, address, runtime
from kernels.cpu.native.step_inputs import commit_call, gather_call
from kernels.footprint.native_sampling import scratch_bytes
from server.execution.decode_program import RowBuffers
from server.execution.sampler import MIN_P, TEMPERATURE, TOP_P


@dataclass(frozen=True, slots=True)
class Head:
    """The calls behind the layers: the final norm, where there is one, the product with the
    unembedding, and what scales or caps its logits, where something does."""

    hidden: Tensor  # [most tokens, D], what the layers leave
    residual: Tensor | None
    norm: structs.Norm | None
    unembedding: structs.Linear
    scale: structs.Logits | None


class NativeDecodeProgram:
    """The calls of a decode step; those of the layers are ``layers``."""

    def __init__(self, rows: RowBuffers, layers: Sequence[ctypes.Structure], head: Head) -> None:
        buffers = rows.buffers
        self._head, self._vocab = head, head.unembedding.channels
        self._gather = [
            gather_call(buffers["row_state"], inputs, rows.layout, rows.table, rows.block_size, n)
            for n, inputs in enumerate(rows.inputs)
        ]
        self._sample = structs.Sample(
            vocab=self._vocab,
            temperature=address(buffers["step_floats"][TEMPERATURE]),
            top_k=address(buffers["step_top_k"]),
            top_p=address(buffers["step_floats"][TOP_P]),
            min_p=address(buffers["step_floats"][MIN_P]),
            keys=address(buffers["step_keys"]),
            positions=address(buffers["step_output_positions"]),
        )
        self._commit = commit_call(
            buffers["row_state"], buffers["output_counts"], rows.layout, rows.table
        )
        self._commit.results = address(buffers["chosen"])
        behind = (head.norm, head.unembedding, head.scale, self._sample, self._commit)
        self._program = Program(
            (*self._gather, *layers, *(call for call in behind if call is not None))
        )
        self._step = _step(rows)

    def run(self, packet: Tensor, num_rows: int, passes: int, *, truncates: bool) -> None:
        """As DecodeProgram.run."""
        head = self._head
        logits = torch.empty(num_rows, self._vocab)
        token_ids = torch.empty(num_rows, dtype=torch.int64)
        non_finite = torch.empty(num_rows, dtype=torch.bool)
        nbytes = scratch_bytes(self._vocab, runtime().pool.threads) if truncates else 0
        scratch = torch.empty(nbytes, dtype=torch.uint8)
        hidden = head.hidden
        if head.norm is not None:
            hidden = torch.empty(num_rows, hidden.shape[1])
            head.norm.x, head.norm.residual = address(head.hidden), address(head.residual)
            # A sum is read by the norm alone: it may lie where the result goes.
            head.norm.total = head.norm.out = address(hidden)
        head.unembedding.rows, head.unembedding.out = address(hidden), address(logits)
        if head.scale is not None:
            head.scale.x = address(logits)
        self._sample.logits, self._sample.scratch = address(logits), address(scratch)
        self._sample.token_ids = self._commit.token_ids = address(token_ids)
        self._sample.non_finite = self._commit.non_finite = address(non_finite)
        for call in (*self._gather, self._commit):
            call.table.packet, call.num_rows = address(packet), num_rows
        self._step.tokens = self._step.rows = num_rows
        self._program.run(self._step, passes=passes)


def _step(rows: RowBuffers) -> structs.Step:
    """Where a step's inputs always lie."""
    first = rows.inputs[0]  # what is the same for every group is in all of them
    step = structs.Step(
        token_ids=address(first.token_ids),
        positions=address(first.positions),
        query_start_loc=address(first.query_start_loc),
        seq_lens=address(first.seq_lens),
    )
    for group, inputs in enumerate(rows.inputs):
        step.groups[group] = structs.KVGroup(
            address(inputs.block_tables),
            inputs.block_tables.stride(0),
            address(inputs.slot_mapping),
        )
    return step

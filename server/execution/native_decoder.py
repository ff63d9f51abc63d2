"""The decoder on native kernels: a step's layers are one program, made once and run by one call.

Its calls are server.execution.native_program's; what comes behind the layers are calls of their own
(server.execution.native_head).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from torch import Tensor

from kernels import LinearWeight
from kernels.cpu.native import structs
from kernels.cpu.native.attention import (
    kv_group,
    share_contexts,
)
from kernels.cpu.native.program import Program, address, of_tokens, run_once, runtime
from kernels.footprint.native_linear import product_scratch_bytes
from server.execution.decode_program import RowBuffers
from server.execution.kv_pool import KVPool
from server.execution.layer_parts import (
    PositionTables,
    StepTensors,
)
from server.execution.model import Decoder
from server.execution.native_decode import Head, NativeDecodeProgram
from server.execution.native_head import NativeFinalNorm, NativeUnembedding
from server.execution.native_program import ProgramMaker, Room
from server.memory.layout import Layout
from server.memory.program_values import value_places
from weights.spec import ModelSpec


class NativeDecoder(Decoder):
    """A Decoder whose layers run as one native program."""

    def __init__(
        self,
        spec: ModelSpec,
        linears: Mapping[str, LinearWeight],
        tensors: Mapping[str, Tensor],
        tables: PositionTables,
        format: str,
        room: Room,
    ) -> None:
        super().__init__(spec, linears, tensors, tables, format)
        self._room = room  # the calls point into it
        places = value_places(spec)
        maker = ProgramMaker(spec, linears, tensors, tables, room, places, self)
        calls: list[ctypes.Structure] = list(maker.before_layers())
        self._ends = [len(calls)]  # behind so many layers
        for layer in range(spec.num_layers):
            calls += maker.layer(layer)
            self._ends.append(len(calls))
        for linear in linears.values():
            needed = product_scratch_bytes(
                room.most, linear.in_features, linear.format, runtime().pool.threads
            )
            if needed > room.scratch.nbytes:
                raise ValueError(
                    f"products work in {needed} bytes; the layout has {room.scratch.nbytes}"
                )
        self._maker, self._calls = maker, calls
        self._program = Program(calls)
        self._unembedding = NativeUnembedding(maker.unembedding())
        normed = self.final_norm is not None
        self._final_norm = NativeFinalNorm(maker.final_norm()) if normed else None
        self._attention = [call for call in calls if isinstance(call, structs.Attention)]
        self._workspace: Tensor | None = None
        values = room.of(places.layers[0])
        self._hidden = values["hidden"]
        self._residual = values["residual"] if "residual" in places.handed_on else None

    def forward(
        self, step: StepTensors, num_layers: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As Decoder.forward; the values are the program's own, until the next step."""
        tokens = step.token_ids.shape[0]
        first = step.metadata[0]
        self._work_in(step.workspace.buffer)
        native = structs.Step(
            tokens=tokens,
            rows=first.seq_lens.shape[0],
            token_ids=address(step.token_ids),
            positions=address(step.positions),
            query_start_loc=address(first.query_start_loc),
            seq_lens=address(first.seq_lens),
        )
        for group, metadata in enumerate(step.metadata):
            native.groups[group] = kv_group(metadata)
        self._program.run(native, self._ends[-1 if num_layers is None else num_layers])
        residual = None if self._residual is None else self._residual[:tokens]
        return self._hidden[:tokens], residual

    def decode_program(self, rows: RowBuffers) -> NativeDecodeProgram | None:
        """As Decoder.decode_program. None where logits are computed from a narrower state."""
        if self.project_out is not None:
            return None
        self._work_in(rows.workspace)
        normed = self.final_norm is not None
        head = Head(
            self._hidden,
            self._residual,
            self._maker.final_norm() if normed else None,
            self._maker.unembedding(),
            self._scale_call(),
        )
        return NativeDecodeProgram(rows, self._calls, head)

    def scaled(self, logits: Tensor) -> Tensor:
        """As Decoder.scaled."""
        call = self._scale_call()
        if call is not None:
            call.x = address(logits)
            run_once(call, of_tokens(logits.shape[0]))
        return logits

    def _scale_call(self) -> structs.Logits | None:
        """Of logits anywhere; None where they are as the product gives them."""
        factor, cap = self.spec.logit_scale, self.spec.logit_soft_cap or 0.0
        if factor == 1.0 and not cap:
            return None
        return structs.Logits(width=self.spec.vocab_size, factor=factor, cap=cap)

    def _work_in(self, workspace: Tensor | None) -> None:
        """Where attention has its partial results."""
        if workspace is not self._workspace and workspace is not None:
            self._workspace = workspace
            for call in self._attention:
                share_contexts(call, workspace)

    def pick(self, x: Tensor, residual: Tensor | None, rows: Tensor | None) -> Tensor:
        """As Decoder.pick."""
        if self._final_norm is None:
            return super().pick(x, residual, rows)
        return self._final_norm(x, residual, rows)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """As Decoder.logits."""
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        return self.scaled(self._unembedding(hidden, out))


def build_decoder(
    spec: ModelSpec,
    linears: Mapping[str, LinearWeight],
    tensors: Mapping[str, Tensor],
    tables: PositionTables,
    layout: Layout,
    buffers: Mapping[str, Tensor],
) -> NativeDecoder:
    """As server.execution.model.build_decoder."""
    room = Room(
        buffers["step_values"],
        buffers["product_scratch"],
        KVPool.of(buffers),
        buffers["wide_vectors"],
        layout.config.scheduler.max_num_batched_tokens,
    )
    return NativeDecoder(spec, linears, tensors, tables, layout.config.model.format, room)

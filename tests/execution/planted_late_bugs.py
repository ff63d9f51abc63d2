"""Bugs of the runner on a device, each with the check that notices it: planted one at a time by
test_late_runner_equivalence.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import kernels
from kernels.cpu import step_inputs as cpu_step_inputs
from server.execution import rows as row_module
from server.execution import step_slots
from server.execution.cuda_graphs import DecodeGraphs
from server.execution.packet import PacketDraft
from server.execution.rows import Rows
from server.execution.sampler import Sampler
from server.execution.step import DeviceStep
from server.execution.step_slots import PendingStep, Slots
from tests.equivalence.planting import Apply, Bugs

BUGS = Bugs()


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _step_with(**change: Callable[[Any], Any]) -> Apply:
    """Rows of a step with some fields changed."""

    def make(real: Any) -> Any:
        def step(self: Rows, planned: Any) -> Any:
            rows = real(self, planned)
            return replace(rows, **{name: alter(rows) for name, alter in change.items()})

        return step

    return lambda patch: patch.setattr(Rows, "step", make(Rows.step))


@BUGS.wraps("the packet of the step before", "batched equals alone", DeviceStep, "upload")
def _forget_the_packet(real: Any) -> Any:
    """A replay without its upload: the batch of the step before, once more."""

    def upload(self: DeviceStep, pinned: Any, tensors: Any) -> None:
        before = self._buffers["packet"].clone()
        real(self, pinned, tensors)
        if tensors.packet[0] == before[0]:  # as many rows as in the last step
            table = self.table
            tensors.packet[table.computed_at : table.samples_at] = before[
                table.computed_at : table.samples_at
            ]

    return upload


def _params_when_read(patch: pytest.MonkeyPatch) -> None:
    """What a row asked for is looked up when the result is read, whoever has it then."""
    real = PendingStep.__init__

    def init(self: Any, plan: Any, work: Any, params: Any, *rest: Any) -> None:
        real(self, plan, work, params, *rest)
        self._params = _Late(made[-1], plan)

    made: list[Rows] = []
    real_rows = Rows.__init__

    def rows(self: Rows, *args: Any, **kwargs: Any) -> None:
        real_rows(self, *args, **kwargs)
        made.append(self)

    patch.setattr(Rows, "__init__", rows)
    patch.setattr(PendingStep, "__init__", init)


class _Late:
    def __init__(self, rows: Rows, plan: Any) -> None:
        self._rows, self._plan = rows, plan

    def __iter__(self) -> Any:
        return iter([self._rows.params_of(row.row) for row in self._plan.rows])


def _read_at_once(patch: pytest.MonkeyPatch) -> None:
    """Without waiting for the event."""
    patch.setattr(PendingStep, "_collect", lambda self: self._result)
    real = step_slots.read_rows

    def read(self: PendingStep) -> None:
        if self._result is None:
            rows = real(self._plan, self._work, self._params, self._views)
            self._result = step_slots.StepResult(self._plan.step_id, rows)
            self._events.done.device.catch_up(self._events.done.position)

    patch.setattr(PendingStep, "read", read)


@BUGS.wraps("tokens go to the place in the batch", "batched equals alone", kernels, "commit_tokens")
def _commit_by_place(real: Any) -> Any:
    """A chosen token goes into the record numbered as its place in the batch."""

    def commit(rows: Any, packet: Any, *args: Any, table: Any, num_rows: int, **kwargs: Any) -> Any:
        wrong = packet.clone()
        places = torch.arange(num_rows, dtype=torch.int32)
        wrong[table.rows_at : table.rows_at + num_rows] = places
        real(rows, wrong, *args, table=table, num_rows=num_rows, **kwargs)

    return commit


@BUGS.wraps("penalty counts by place in the batch", "batched equals alone", Sampler, "_tensors")
def _tables_by_place(real: Any) -> Any:
    def tensors(self: Sampler, work: Any, part: Any, packet: Any) -> Any:
        given = real(self, work, part, packet)
        if given.output_counts is None:
            return given
        return replace(given, output_counts=self._counts[: part.stop - part.start].contiguous())

    return tensors


@BUGS.wraps("logits of a neighbour", "batched equals alone", Sampler, "choose")
def _hidden_of_scored(real: Any) -> Any:
    """Rows that choose are taken from the front, where the scored ones are."""

    def choose(self: Sampler, work: Any, packet: Any, hidden: Any, pinned: Any) -> Any:
        return real(self, work, packet, None if hidden is None else hidden.roll(1, 0), pinned)

    return choose


@BUGS.wraps(
    "a capture knows its first contexts for all",
    "short of blocks equals plenty",
    DeviceStep,
    "_step_tensors",
)
def _short_contexts(real: Any) -> Any:
    return lambda self, rows, tokens, query, longest: real(self, rows, tokens, query, 40)


@BUGS.wraps("the host asks for a value", "batched equals alone", DeviceStep, "_gather")
def _with_a_question(real: Any) -> Any:
    return lambda self, packet, rows: real(self, packet, max(rows, int(packet[0])))


@BUGS.wraps("biases with the wrong sign", "batched equals alone", PacketDraft, "put_floats")
def _negated(real: Any) -> Any:
    return lambda self, values: real(self, [-value for value in values])


BUGS.sets("stale rows fill a batch up", "filled up", cpu_step_inputs, "_fill_up", _nothing)
BUGS.add(
    "position + 1 after a row's first step",
    "chunked equals whole",
    _step_with(computed=lambda rows: rows.computed + (rows.computed > 0)),
)
BUGS.add("a token is read before its event", "batched equals alone", _read_at_once)
BUGS.sets(
    "one pinned slot for two steps",
    "batched equals alone",
    Slots,
    "take",
    lambda self: self._slots[0],
)
BUGS.add("parameters of the row's next owner", "short of blocks equals plenty", _params_when_read)
BUGS.sets(
    "penalty counts not rebuilt on resume",
    "preempted equals not",
    kernels,
    "count_tokens",
    _nothing,
)
BUGS.sets(
    "tokens not counted as they are chosen",
    "batched equals alone",
    row_module,
    "tables_read",
    lambda params: 0,
)
BUGS.add(
    "output position off by one",
    "batched equals alone",
    _step_with(outputs=lambda rows: rows.outputs + 1),
)
BUGS.wraps("new blocks do not reach the device", "short of blocks equals plenty", Rows, "_extend")(
    lambda real: lambda *args: real(*args) and []
)
BUGS.sets(
    "copies for forks are left out",
    "choices equal separate requests",
    kernels,
    "copy_blocks",
    _nothing,
)
BUGS.sets(
    "a graph one size too small",
    "batched equals alone",
    DecodeGraphs,
    "size_for",
    lambda self, rows: max(s for s in self.sizes if s <= rows),
)

"""Which decode steps are captured, when, and at what size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from server.engine.request import SamplingParams
from server.engine.step_plan import PlannedRow, StepPlan
from server.execution.cuda_graphs import DecodeGraphs, GraphMode
from server.execution.device import Work
from server.memory.graph_sizes import graph_sizes, next_size
from tests.execution import late_runners, stepping
from tests.execution.fake_device import FakeDevice, Operation
from tests.execution.late_plans import Late

GREEDY = SamplingParams(seed=0, temperature=0.0, max_tokens=64)


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [
        (0, ()),
        (1, (1,)),
        (3, (1, 2, 3)),
        (16, (1, 2, 4, 8, 16)),
        (100, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100)),
        (256, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)),
    ],
)
def test_sizes_rise_to_the_most_rows(max_rows: int, sizes: tuple[int, ...]) -> None:
    assert graph_sizes(max_rows) == sizes


def test_every_batch_up_to_512_rows_has_a_size() -> None:
    for max_rows in range(1, 1200):
        sizes = graph_sizes(max_rows)
        assert len(sizes) <= 20
        assert list(sizes) == sorted(set(sizes))
        assert sizes[-1] == min(max_rows, 512)


@pytest.mark.parametrize(
    ("rows", "size"), [(1, 1), (2, 2), (3, 4), (9, 16), (16, 16), (17, 20), (20, 20), (21, None)]
)
def test_a_batch_takes_the_next_size_up(rows: int, size: int | None) -> None:
    assert next_size(graph_sizes(20), rows) == size
    if size is not None and rows > 8:
        assert size < 2 * rows


def graphs(device: FakeDevice, steps: list[int], mode: GraphMode) -> DecodeGraphs:
    return DecodeGraphs(device, (1, 2, 4), steps.append, lambda: steps.append(0), mode=mode)


class SmallDevice(FakeDevice):
    """Has no memory for a second graph."""

    num_captures = 0

    def capture(self, work: Work) -> list[Operation]:
        if self.num_captures:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.num_captures += 1
        return super().capture(work)


def test_a_size_that_finds_no_memory_runs_uncaptured_from_then_on() -> None:
    small = SmallDevice()
    captured = graphs(small, [], GraphMode.LAZY)
    assert captured.graph(2) is not None
    assert captured.graph(4) is None
    assert (captured.size_for(3), captured.size_for(2)) == (None, 2)
    assert captured.captured == (2,)


def test_all_sizes_are_captured_largest_first_each_with_an_empty_batch() -> None:
    device, steps = FakeDevice(), list[int]()
    made = graphs(device, steps, GraphMode.START)
    made.capture_all()
    assert made.captured == (1, 2, 4)
    assert steps == [0, 4, 4, 0, 2, 2, 0, 1, 1]  # emptied, run once, captured
    made.graph(2)
    assert device.captures == 3


def test_each_capture_and_nothing_else_is_watched() -> None:
    told: list[str] = []

    class Watched(FakeDevice):
        def capture(self, work: Work) -> list[Operation]:
            told.append("capture")
            return super().capture(work)

    @contextmanager
    def watch() -> Iterator[None]:
        told.append("before")
        yield
        told.append("after")

    steps = list[int]()
    made = DecodeGraphs(Watched(), (1, 2), steps.append, steps.clear, around_capture=watch)
    assert told == []
    made.capture_all()
    made.graph(2)
    assert told == ["before", "capture", "after"] * 2


def test_a_size_is_captured_when_it_is_first_needed() -> None:
    device, steps = FakeDevice(), list[int]()
    made = graphs(device, steps, GraphMode.LAZY)
    assert made.captured == ()
    made.graph(2)
    made.graph(2)
    assert made.captured == (2,)
    assert device.captures == 1
    assert graphs(device, steps, GraphMode.OFF).size_for(1) is None


def decode(built: late_runners.FakeBuilt, rows: int, **changes: object) -> None:
    """A prompt for each of so many rows, then one step of a token each."""
    ids = [5, 9, 33]
    admitted = tuple(stepping.admitted(ids, GREEDY, (row,), row=row) for row in range(rows))
    first = tuple(PlannedRow(row, 3, samples=True) for row in range(rows))
    stepping.step(built.runner, StepPlan(1, rows=first, admitted=admitted))
    planned = {"num_scheduled_tokens": 1, "samples": True} | changes
    then = tuple(PlannedRow(row, **planned) for row in range(rows))  # type: ignore[arg-type]
    stepping.step(built.runner, StepPlan(2, rows=then))


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 4), (8, 8)])
def test_a_pure_decode_step_runs_captured(rows: int, size: int, late: Late) -> None:
    built = late.build()
    decode(built, rows)
    assert built.runner.graphs.captured == (size,)
    assert built.device.replays == 1


def test_a_batch_larger_than_the_rows_of_logits_runs_uncaptured(late: Late) -> None:
    built = late.build(max_logit_rows=3)
    assert built.runner.graphs.sizes == (1, 2, 3)
    decode(built, 4)
    assert built.device.replays == 0
    decode(built, 3)
    assert built.device.replays == 1


def test_steps_that_are_more_than_a_token_a_row_run_uncaptured(late: Late) -> None:
    built = late.build()
    one = stepping.admitted([5, 9, 33, 7], GREEDY, (1,))
    plans = [
        StepPlan(1, rows=(PlannedRow(0, 1),), admitted=(one,)),  # chooses nothing
        StepPlan(2, rows=(PlannedRow(0, 1, num_prompt_logits=1),)),
        StepPlan(3, rows=(PlannedRow(0, 2, samples=True),)),
    ]
    for plan in plans:
        stepping.step(built.runner, plan)
    assert built.device.replays == built.device.captures == 0


def test_a_start_captures_every_size_and_leaves_no_row(late: Late, folder: Path) -> None:
    built = late.build(graphs=GraphMode.START)
    assert built.runner.warm_up() > 0
    assert built.runner.graphs.captured == (1, 2, 4, 8)
    assert not built.runner.rows.num_tokens.any()
    captures, ids = built.device.captures, [5, 9, 33, 60, 12]
    got = stepping.greedy(built.runner, ids, 12)
    assert built.device.captures == captures
    with pytest.MonkeyPatch.context() as patch:
        eager = Late(folder, patch).build(graphs=GraphMode.OFF)
        assert stepping.greedy(eager.runner, ids, 12) == got
        assert eager.device.replays == 0

"""Plans for runners on a fake device, and their answers held against a CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from server.engine.request import SamplingParams
from server.engine.step_plan import PendingResult, PlannedRow, StepPlan, StepResult
from server.execution.model_runner import ModelRunner
from tests.equivalence import workloads
from tests.execution import late_runners, stepping
from tests.execution.stepping import unpack_logprobs

IDS = list(workloads.prompt(3, 21))
GREEDY = SamplingParams(seed=0, temperature=0.0, max_tokens=64, logprobs=2)
PENALISED = replace(workloads.SEEDED, logprobs=1)


@dataclass(frozen=True)
class Late:
    """Runners of one checkpoint: on a device that runs late, and on a CPU, whose answers count."""

    folder: Path
    patch: pytest.MonkeyPatch

    def build(self, **changes: Any) -> late_runners.FakeBuilt:
        return late_runners.build(self.folder, self.patch, **({"max_model_len": 256} | changes))

    def cpu_runner(self, **changes: Any) -> ModelRunner:
        return stepping.built(self.folder, max_model_len=256, **changes).runner

    def on_cpu(self, plans: list[StepPlan], **changes: Any) -> list[StepResult]:
        """One after the other."""
        runner = self.cpu_runner(**changes)
        return [stepping.step(runner, plan) for plan in plans]

    def assert_as_on_cpu(self, plans: list[StepPlan], **changes: Any) -> late_runners.FakeBuilt:
        """Two steps in flight all the way, and the same answers."""
        expected = self.on_cpu(plans, **changes)
        built = self.build(**changes)
        assert_overlapped_steps_are(expected, built.runner, plans)
        return built


def prompts(samplings: list[SamplingParams], first_block: int = 0) -> StepPlan:
    """A row for each, its prompt starting elsewhere; three blocks a row."""
    rows = range(len(samplings))
    tables = [stepping.blocks_for(48, 16, first=first_block + 3 * row) for row in rows]
    admitted = tuple(
        stepping.admitted(IDS[: 15 + row], samplings[row], tables[row], row=row) for row in rows
    )
    planned = tuple(PlannedRow(row, 15 + row, samples=True) for row in rows)
    return StepPlan(1, rows=planned, admitted=admitted)


def decode(step_id: int, rows: list[int], **changes: object) -> StepPlan:
    planned = tuple(PlannedRow(row, 1, samples=True) for row in rows)
    return replace(StepPlan(step_id, rows=planned), **changes)  # type: ignore[arg-type]


def start(runner: Any, plan: StepPlan) -> PendingResult:
    return runner.sample(runner.forward(plan), None)  # type: ignore[no-any-return]


def assert_same(got: StepResult, expected: StepResult) -> None:
    assert got.step_id == expected.step_id
    assert len(got.rows) == len(expected.rows)
    for mine, theirs in zip(got.rows, expected.rows, strict=True):
        assert (mine.row, mine.token_ids) == (theirs.row, theirs.token_ids)
        assert mine.non_finite == theirs.non_finite
        for name in ("logprobs", "prompt_logprobs"):
            ours, others = getattr(mine, name), getattr(theirs, name)
            assert (ours is None) == (others is None)
            if ours is not None:
                ids, nats = unpack_logprobs(ours)
                other_ids, other_nats = unpack_logprobs(others)
                np.testing.assert_array_equal(ids, other_ids)
                np.testing.assert_allclose(nats, other_nats, atol=1e-5, rtol=0)


def assert_overlapped_steps_are(
    expected: list[StepResult], runner: Any, plans: list[StepPlan]
) -> None:
    in_flight: list[PendingResult] = []
    results: list[StepResult] = []
    for plan in plans:
        in_flight.append(start(runner, plan))
        if len(in_flight) == 2:
            results.append(in_flight.pop(0).result())
    results += [pending.result() for pending in in_flight]
    for got, want in zip(results, expected, strict=True):
        assert_same(got, want)


@contextmanager
def no_tensor_operation() -> Iterator[None]:
    class Refusing(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def __torch_dispatch__(self, func: Any, *args: Any) -> Any:
            name = func.__name__.partition(".")[0]
            if name != "slice":  # of pinned memory: a view, no work
                raise AssertionError(f"{name} runs on the host")
            return func(*args[1], **(args[2] if len(args) > 2 else {}))

    with Refusing():
        yield

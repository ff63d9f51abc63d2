"""The runner on a device answers as the one on a CPU does, two steps in flight or one, captured or
not; and bugs of its own kinds, planted one at a time, are noticed by the check that is named.

They are the equivalences of tests/equivalence. The plain side of each comes from the runner on a
CPU, so what is held is also that both give the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.engine.invariants import InvariantError
from server.engine.request import EngineRequest
from server.execution.cuda_graphs import DecodeGraphs, GraphMode
from server.execution.model_runner import ModelRunner
from tests.equivalence import checks, harness, workloads
from tests.equivalence.checks import Setting
from tests.equivalence.planting import PlantedBug
from tests.execution import late_runners
from tests.execution.planted_late_bugs import BUGS

Known = dict[tuple[str, ...], harness.Run]


def plain_runs(folder: Path) -> Known:
    """Every workload as a CPU answers it, one request at a time. Before a fake is installed."""
    known: Known = {}
    setting = Setting(folder, known=known)
    for requests in (workloads.mixed(), workloads.prefixed(), workloads.growing()):
        setting.plain(requests)
    checks.choices_equal_separate_requests(setting)  # remembers the separate requests' run
    return known


@dataclass(frozen=True)
class LateSetting(Setting):
    """A checkpoint, and how the runner on a fake device runs it."""

    patch: pytest.MonkeyPatch = field(kw_only=True)
    graphs: GraphMode = GraphMode.LAZY
    overlaps: bool = True
    changes: dict[str, int] = field(default_factory=dict)
    made: list[late_runners.FakeBuilt] = field(default_factory=list)

    def built(self, num_tokens: int = 4096) -> late_runners.FakeBuilt:  # type: ignore[override]
        config = harness.runner_config(self.block_size, num_tokens, **self.changes)
        if not self.overlaps:
            self.patch.setattr(ModelRunner, "overlaps", property(lambda _: False))
        built = late_runners.build_from(self.folder, config, self.patch, graphs=self.graphs)
        self.made.append(built)
        return built

    def plain(self, requests: Sequence[EngineRequest]) -> harness.Run:
        """Known before: a CPU's kernels are not to be had while a fake device is installed."""
        names = tuple(request.request_id for request in requests)
        assert self.known is not None and names in self.known, "run plainly beforehand"
        return self.known[names]

    @property
    def replays(self) -> int:
        return sum(built.device.replays for built in self.made)


class Models:
    """Folders, and what a CPU answers; made when first asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._made: dict[str, tuple[Path, Known]] = {}

    def __getitem__(self, name: str) -> tuple[Path, Known]:
        if name not in self._made:
            folder = checks.write(name, self._factory.mktemp(name))
            self._made[name] = (folder, plain_runs(folder))
        return self._made[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory)


def setting(models: Models, family: str, patch: pytest.MonkeyPatch, **how: Any) -> LateSetting:
    folder, known = models[family]
    return LateSetting(folder, known=known, patch=patch, **how)


WAYS: dict[str, dict[str, Any]] = {
    "captured, overlapped": {},
    "eager, one at a time": {"graphs": GraphMode.OFF, "overlaps": False},
    "three rows of logits, pages of 64": {"changes": {"max_logit_rows": 3}, "block_size": 64},
}


@pytest.mark.parametrize(
    ("family", "way"),
    [
        ("llama", "captured, overlapped"),
        pytest.param("gpt2", "captured, overlapped", marks=pytest.mark.slow),
        pytest.param("windows, caps, four norms", "captured, overlapped", marks=pytest.mark.slow),
        pytest.param("llama", "eager, one at a time", marks=pytest.mark.slow),
        pytest.param("llama", "three rows of logits, pages of 64", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", checks.CHECKS)
def test_answers_are_those_of_a_cpu(
    family: str, name: str, way: str, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = WAYS[way]
    one = setting(models, family, monkeypatch, **how)
    checks.CHECKS[name](one)
    if "changes" not in how:  # else most batches have more rows than there are of logits
        assert (one.replays > 0) is ("graphs" not in how)
    most_queued = max(built.device.most_queued for built in one.made)
    assert (most_queued > 4) is how.get("overlaps", True)  # pieces of work that make a step


def test_filled_up_batches_answer_as_full_ones(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch runs at the largest size, so that most of its rows are filling."""
    monkeypatch.setattr(DecodeGraphs, "size_for", lambda self, rows: self.sizes[-1])
    one = setting(models, "llama", monkeypatch)
    checks.batched_equals_alone(one)
    checks.short_of_blocks_equals_plenty(one)
    assert one.replays > 50
    ran = [built for built in one.made if built.device.replays]  # one told its sizes alone
    assert [built.runner.graphs.captured for built in ran] == [(16,)] * 2


def check(bug: PlantedBug, one: Setting) -> None:
    if bug.caught_by == "filled up":
        one.patch.setattr(DecodeGraphs, "size_for", lambda self, rows: self.sizes[-1])  # type: ignore[attr-defined]
        checks.short_of_blocks_equals_plenty(one)
    else:
        checks.CHECKS[bug.caught_by](one)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_bug_is_caught(
    bug: PlantedBug, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = setting(models, "llama", monkeypatch)
    real = one.built

    def built(num_tokens: int = 4096) -> Any:
        made = real(num_tokens)
        bug.apply(monkeypatch)  # over the fake's kernels
        return made

    object.__setattr__(one, "built", built)
    with pytest.raises((AssertionError, InvariantError)):
        check(bug, one)

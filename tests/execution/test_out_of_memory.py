"""An allocation that fails ends the request that asked for it, at most, and nobody else's answer
changes by a bit more than rounding: at every place of a step where memory is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from server.engine.request import EngineRequest
from server.engine.step_plan import StepOutOfMemory
from server.execution import rows, step_slots
from server.execution.build import BuiltRunner
from server.execution.cuda_graphs import GraphMode
from server.execution.live_bytes import LiveBytes
from server.execution.out_of_memory import attribute_oom, is_out_of_memory
from tests.equivalence import checks, harness, workloads
from tests.execution import late_runners
from tests.execution.failing_memory import (
    WORDS,
    Bounded,
    FailingOnce,
    Place,
    ShortRun,
    run_short,
    without,
)

ONE_LAYER = replace(checks.SPECS["llama"], num_layers=1)
GREEDY = replace(workloads.GREEDY, max_tokens=3)
SEEDED = replace(workloads.SEEDED, max_tokens=3)
MIXED = (
    workloads.request("greedy", workloads.prompt(1, 20), GREEDY),
    workloads.request("scored", workloads.prompt(2, 24), replace(GREEDY, prompt_logprobs=2)),
    workloads.request("choices", workloads.prompt(3, 18), SEEDED, n=2),
)
EACH = [("mixed", MIXED), *((one.request_id, (one,)) for one in MIXED)]
Runner = Callable[..., ShortRun]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(checks.SPECS, "llama", ONE_LAYER)
        return checks.write("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def built(folder: Path) -> BuiltRunner:
    return harness.built_runner(folder)


@pytest.fixture
def on_cpu(built: BuiltRunner) -> Runner:
    def run(requests: tuple[EngineRequest, ...], memory: Any, **how: Any) -> ShortRun:
        return run_short(built.runner, built.kv, built.layout.config, requests, memory, **how)

    return run


@pytest.fixture
def on_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """On a device that runs late, two steps in flight."""
    fake = late_runners.build(folder, monkeypatch, graphs=GraphMode.OFF, max_model_len=256)

    def run(requests: tuple[EngineRequest, ...], memory: Any, **how: Any) -> ShortRun:
        return run_short(fake.runner, fake.kv, fake.layout.config, requests, memory, **how)

    return run


Choose = Callable[[list[Place]], Sequence[int]]  # of all allocations, the indices that fail


def spread(most: int) -> Choose:
    """So many over the whole run."""
    return lambda places: range(0, len(places), max(1, len(places) // most))


def at_each_place(places: list[Place]) -> list[int]:
    """The first allocation of each line, by each way that the program came to it."""
    return sorted({place: number for number, place in reversed(list(enumerate(places)))}.values())


def every_one(places: list[Place]) -> range:
    return range(len(places))


def fail_everywhere(
    run: Runner, requests: tuple[EngineRequest, ...], choose: Choose
) -> list[ShortRun]:
    """Fails one allocation after the other, each in a run of its own, and checks what is left."""
    calm = FailingOnce(0)
    reference = run(requests, calm)
    assert not reference.shortages
    found = []
    assert calm.count > 50
    for number in choose(calm.places):
        memory = FailingOnce(number + 1)
        short = run(requests, memory)
        assert memory.count > number
        (shortage,) = short.shortages
        assert shortage.asked, "at least one request is named"
        assert shortage.ended == (shortage.asked if len(shortage.asked) == 1 else ())
        assert short.errors == {name: {"OUT_OF_MEMORY"} for name in shortage.ended}
        harness.assert_equal(
            without(short.run, shortage.ended), without(reference.run, shortage.ended)
        )
        found.append(short)
    return found


def assert_attributed(found: list[ShortRun]) -> None:
    """Of a mixed batch: whoever alone is named owns that work, and the rest was everybody's."""
    asked = {short.shortages[0].asked for short in found}
    assert ("scored",) in asked, "rows of logits that one request asked for are its own"
    assert any(len(names) == len(MIXED) for names in asked), "a layer's work is everybody's"


@pytest.mark.parametrize(("name", "requests"), EACH)
def test_wherever_memory_fails_the_others_go_on(
    name: str, requests: tuple[EngineRequest, ...], on_cpu: Runner
) -> None:
    found = fail_everywhere(on_cpu, requests, spread(30 if name == "mixed" else 4))
    if name == "mixed":
        assert_attributed(found)
    else:
        assert all(short.ended == [name] for short in found), "alone, it is the one that asked"


@pytest.mark.parametrize(("name", "requests"), EACH)
def test_wherever_memory_fails_on_a_device_the_others_go_on(
    name: str, requests: tuple[EngineRequest, ...], on_device: Runner
) -> None:
    found = fail_everywhere(on_device, requests, spread(8 if name == "mixed" else 3))
    if name != "mixed":
        assert all(short.ended == [name] for short in found)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "requests"), EACH)
def test_an_allocation_may_fail_at_every_place(
    name: str, requests: tuple[EngineRequest, ...], on_cpu: Runner
) -> None:
    fail_everywhere(on_cpu, requests, at_each_place)


@pytest.mark.sweep
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "requests"), EACH)
def test_every_single_allocation_may_fail(
    name: str, requests: tuple[EngineRequest, ...], on_cpu: Runner
) -> None:
    fail_everywhere(on_cpu, requests, every_one)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_allocation_on_a_device_may_fail_at_every_place(on_device: Runner) -> None:
    assert_attributed(fail_everywhere(on_device, MIXED, at_each_place))


HOG = workloads.request(
    "hog", workloads.prompt(5, 40), replace(GREEDY, prompt_logprobs=8, max_tokens=6)
)
SMALL = tuple(
    workloads.request(f"small {i}", workloads.prompt(10 + i, 4), replace(GREEDY, max_tokens=6))
    for i in range(3)
)


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_a_request_that_never_fits_ends_and_takes_no_other_with_it(
    where: str, request: pytest.FixtureRequest
) -> None:
    run: Runner = request.getfixturevalue(f"on_{where}")
    small, alone = LiveBytes(), LiveBytes()
    reference = run(SMALL, small)
    run((HOG,), alone)
    most = (small.peak_bytes + alone.peak_bytes) // 2
    assert small.peak_bytes < most < alone.peak_bytes
    short = run((*SMALL[:2], HOG, SMALL[2]), Bounded(most))
    assert short.errors == {"hog": {"OUT_OF_MEMORY"}}
    harness.assert_equal(without(short.run, ["hog"]), reference.run)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_requests_that_fit_alone_and_never_together_come_to_an_end(
    prefix_caching: bool, on_cpu: Runner
) -> None:
    """The first shortage costs nobody; from the second on the one that asks for most ends."""
    requests = tuple(
        workloads.request(f"{i}", workloads.prompt(20 + i, 36 + i), GREEDY) for i in range(4)
    )
    how = {"prefix_caching": prefix_caching, "budget": 160}
    peaks = []
    for one in requests:
        alone = LiveBytes()
        on_cpu((one,), alone, **how)
        peaks.append(alone.peak_bytes)
    most = max(peaks) + 4096
    reference = on_cpu(requests, FailingOnce(0), **how)
    short = on_cpu(requests, Bounded(most), **how)
    assert short.shortages[0].ended == ()
    assert len(short.shortages) <= 2 * len(requests)
    harness.assert_equal(without(short.run, short.ended), without(reference.run, short.ended))
    assert len(short.ended) < len(requests)


def test_the_message_says_how_much_of_a_step_it_was(on_cpu: Runner) -> None:
    memory = FailingOnce(30)
    (shortage,) = on_cpu((HOG,), memory).shortages
    assert (shortage.num_rows, shortage.asked, shortage.ended) == (1, ("hog",), ("hog",))
    assert shortage.num_tokens == 40
    assert "can't allocate memory" in shortage.reason


@pytest.mark.parametrize(("module", "name"), [(step_slots, "pack_logprobs"), (rows, "record_head")])
def test_what_numpy_cannot_have_is_a_shortage_too(
    module: Any, name: str, on_cpu: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(module, name), []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 3:
            raise MemoryError("Unable to allocate 8.00 MiB")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)
    short = on_cpu(MIXED, FailingOnce(0))
    (shortage,) = short.shortages
    assert len(shortage.asked) == len(shortage.ended) == 1, "it was one row's own work"
    assert short.errors == {shortage.asked[0]: {"OUT_OF_MEMORY"}}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError(WORDS), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_an_allocation_that_failed_is_known_by_its_kind_or_words(
    error: Exception, expected: bool
) -> None:
    assert is_out_of_memory(error) is expected


def test_torch_itself_says_so_on_a_cpu() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert is_out_of_memory(raised.value)


def test_the_innermost_rows_are_the_ones_that_asked() -> None:
    with pytest.raises(StepOutOfMemory) as raised, attribute_oom((1, 2, 3)), attribute_oom((2, 2)):
        raise MemoryError("no")
    assert (raised.value.rows, raised.value.reason) == ((2,), "no")
    with pytest.raises(ValueError, match="other"), attribute_oom((1,)):
        raise ValueError("other")

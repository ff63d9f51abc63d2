"""The books of a GPU, on a simulated one that knows what each of its bytes is for.

The sum closes by construction, so it shows nothing by itself: every kind is held to the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.memory.accounting import cuda as cuda_memory
from server.memory.accounting.accountant import Accountant
from server.memory.accounting.cuda import CudaMemory, steady
from server.memory.accounting.cuda_allocator import AllocatorState
from server.memory.accounting.nvml import DeviceUse
from server.memory.accounting.reading import NAMES, DeviceReading, flatten
from server.memory.kinds import MemoryKind
from tests.memory.accounting import accounting_sources
from tests.memory.simulated_gpu import COMMON, GRAPHS, MIB, OWN_PID, Sight, SimulatedGpu, Tensor

CONTEXT, LIBRARIES, LOADED = 480 * MIB, 32 * MIB, 90 * MIB
LISTS = (MemoryKind.WEIGHTS, MemoryKind.KV_CACHE, MemoryKind.IO, MemoryKind.WORKSPACE)


def opened(gpu: SimulatedGpu, *, knows_before: bool = True) -> CudaMemory:
    """A context, then the libraries' workspace, then the base reading: as the engine starts."""
    before = gpu.use() if knows_before else None
    gpu.make_context(CONTEXT)
    gpu.libraries = gpu.allocate(LIBRARIES, MemoryKind.WORKSPACE)
    return CudaMemory(gpu.use, gpu.allocator, before=before, pid=OWN_PID)


def built(gpu: SimulatedGpu, memory: CudaMemory) -> None:
    """A model is loaded, kernels with it; the runtime is settled."""
    gpu.allocate(900 * MIB + 77, MemoryKind.WEIGHTS)
    gpu.allocate(300 * MIB, MemoryKind.KV_CACHE)
    gpu.allocate(5 * MIB + 1, MemoryKind.IO)
    gpu.allocate(11 * MIB, MemoryKind.WORKSPACE)
    gpu.allocate(24 * MIB, None, GRAPHS)
    gpu.load_module(LOADED)
    gpu.settled_modules = gpu.modules
    memory.settle()


def serving(**facts: Any) -> tuple[SimulatedGpu, CudaMemory]:
    """A GPU with these facts, on which an engine has started."""
    gpu = SimulatedGpu(**facts)
    memory = opened(gpu)
    built(gpu, memory)
    return gpu, memory


def reader(gpu: SimulatedGpu, memory: CudaMemory) -> Callable[[], dict[str, int]]:
    """Reads the books of one accountant, again and again."""
    books = Accountant(accounting_sources(memory, gpu.held))
    return lambda: flatten(books.read())


def assert_true(gpu: SimulatedGpu, reading: Mapping[str, int]) -> None:
    assert {kind: reading[kind] for kind in MemoryKind} == gpu.truth()
    assert sum(reading[kind] for kind in MemoryKind) == reading["total"] == gpu.total
    assert set(reading) == set(NAMES)
    state = gpu.allocator()
    slack = sum(reading[f"allocator_slack.{part}"] for part in ("free", "pending", "rounding"))
    assert slack == reading["allocator_slack"]
    assert reading["allocator.reserved"] - reading["allocator.in_use"] - slack == state.graphs
    assert reading["allocator.largest_free"] <= reading["allocator_slack.free"]
    assert reading["runtime.base"] + reading["runtime.code"] == reading["runtime"]
    parts = reading["unaccounted.tensors"] + reading["unaccounted.outside"]
    assert parts == reading["unaccounted"]
    unlisted = sum(t.asked for t in gpu.tensors if t.kind is None and t.pool == COMMON)
    assert reading["unaccounted.tensors"] == unlisted
    hidden = gpu.sight is Sight.HIDDEN
    assert reading["estimated.runtime"] == reading["estimated.other_processes"] == int(hidden)


def everything(gpu: SimulatedGpu) -> None:
    """A little of all that can happen."""
    gpu.neighbour_uses(7, 1000 * MIB)
    kept = gpu.allocate(3 * MIB + 100, None)
    dropped = gpu.allocate(10 * MIB, MemoryKind.IO)
    waiting = gpu.allocate(7 * MIB, MemoryKind.IO)
    assert kept is not None and dropped is not None and waiting is not None
    gpu.drop(dropped)
    gpu.drop(waiting, pending=True)
    gpu.allocate(40 * MIB, None, GRAPHS)
    gpu.load_module(11 * MIB)
    gpu.take_behind_the_back(64 * MIB)


@pytest.mark.parametrize("sight", Sight)
def test_every_kind_is_true_whatever_happens(sight: Sight) -> None:
    gpu, memory = serving(sight=sight, neighbours={5: 2000 * MIB})
    read = reader(gpu, memory)
    assert_true(gpu, read())
    everything(gpu)
    assert_true(gpu, read())
    gpu.neighbour_uses(5, 0)
    gpu.streams_come_past()
    gpu.empty_cache()
    assert_true(gpu, read())


SIZES = st.integers(1, 200 * MIB)
KINDS = st.sampled_from((*LISTS, None))
STEPS = st.one_of(
    st.tuples(st.just("allocate"), SIZES, KINDS),
    st.tuples(st.just("capture"), SIZES),
    st.tuples(st.just("drop"), st.integers(0, 50), st.booleans()),
    st.tuples(st.just("past")),
    st.tuples(st.just("empty")),
    st.tuples(st.just("module"), SIZES),
    st.tuples(st.just("behind"), SIZES),
    st.tuples(st.just("given back")),
    st.tuples(st.just("neighbour"), st.integers(1, 4), st.integers(0, 4000 * MIB)),
)


def happen(gpu: SimulatedGpu, tensors: list[Tensor], step: tuple[object, ...]) -> None:
    match step:
        case ("allocate", int(asked), kind):
            made = gpu.allocate(asked, kind)  # type: ignore[arg-type]
            tensors.extend([] if made is None else [made])
        case ("capture", int(asked)):
            made = gpu.allocate(asked, None, GRAPHS)
            if made is not None:
                gpu.drop(made)
        case ("drop", int(index), bool(pending)):
            if tensors:
                gpu.drop(tensors.pop(index % len(tensors)), pending=pending)
        case ("past",):
            gpu.streams_come_past()
        case ("empty",):
            gpu.empty_cache()
        case ("module", int(nbytes)):
            gpu.load_module(nbytes)
        case ("behind", int(nbytes)):
            gpu.take_behind_the_back(nbytes)
        case ("given back",):
            gpu.give_back_behind()
        case ("neighbour", int(pid), int(nbytes)):
            gpu.neighbour_uses(pid, nbytes)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(Sight), st.lists(STEPS, max_size=30))
def test_the_books_are_true_after_any_history(
    sight: Sight, history: list[tuple[object, ...]]
) -> None:
    gpu, memory = serving(sight=sight, total=8 * 1024 * MIB)
    read = reader(gpu, memory)
    tensors: list[Tensor] = []
    for step in history:
        happen(gpu, tensors, step)
        assert_true(gpu, read())


def test_64_mib_behind_the_back_are_unaccounted_until_they_are_given_back() -> None:
    gpu, memory = serving()
    read = reader(gpu, memory)
    gpu.take_behind_the_back(64 * MIB)
    held = read()
    assert held["unaccounted"] == held["unaccounted.outside"] == 64 * MIB
    gpu.give_back_behind()
    assert read()["unaccounted"] == 0


@pytest.mark.parametrize("sight", Sight)
def test_a_graph_captured_later_belongs_to_the_runtime(sight: Sight) -> None:
    """What it takes of the driver; its pool is the allocator's and stands by itself."""
    gpu, memory = serving(sight=sight)
    gpu.take_behind_the_back(3 * MIB)  # before, and after, it is nobody's
    with memory.loading():
        gpu.allocate(6 * MIB, None, GRAPHS)
        gpu.load_module(5 * MIB)
    gpu.settled_modules = gpu.modules
    gpu.take_behind_the_back(2 * MIB)
    assert_true(gpu, reader(gpu, memory)())


def test_where_the_driver_hides_us_the_remainder_is_called_an_estimate() -> None:
    gpu, memory = serving(sight=Sight.HIDDEN)
    gpu.take_behind_the_back(64 * MIB)
    reading = reader(gpu, memory)()
    assert reading["estimated.runtime"] == reading["estimated.other_processes"] == 1
    assert reading["other_processes"] == gpu.driver + LOADED + 64 * MIB
    assert reading["unaccounted"] == 0


def test_without_any_reading_before_the_context_what_was_in_use_counts_as_runtime() -> None:
    gpu = SimulatedGpu(sight=Sight.HIDDEN, neighbours={5: 100 * MIB})
    memory = opened(gpu, knows_before=False)
    reading = reader(gpu, memory)()
    assert reading["runtime"] == CONTEXT + 100 * MIB
    assert reading["estimated.runtime"] == 1
    assert reading["unaccounted"] == 0


def test_a_stranger_with_our_number_is_not_us() -> None:
    """Numbers of the host: ours may be somebody else's there."""
    gpu = SimulatedGpu(sight=Sight.HOST_NUMBERS, neighbours={OWN_PID: 500 * MIB})
    memory = opened(gpu)
    assert reader(gpu, memory)()["runtime"] == CONTEXT


def test_two_that_appear_together_cannot_be_told_apart() -> None:
    gpu = SimulatedGpu(sight=Sight.HOST_NUMBERS)
    before = gpu.use()
    gpu.make_context(CONTEXT)
    gpu.neighbour_uses(5, 100 * MIB)
    memory = CudaMemory(gpu.use, gpu.allocator, before=before, pid=OWN_PID)
    assert MemoryKind.RUNTIME in memory.read().estimated


def test_a_reading_is_repeated_until_two_are_equal() -> None:
    answers = iter([5, 4, 3, 3, 9])
    assert steady(lambda: next(answers)) == 3
    restless = iter(range(10_000))
    assert steady(lambda: next(restless)) < 100


# -- planted mistakes: each makes the books untrue, and is found ----------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def on_reading(change: Callable[[DeviceReading], DeviceReading]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        read = CudaMemory.read
        patch.setattr(CudaMemory, "read", lambda self: change(read(self)))

    return plant


def kinds(**changes: Callable[[DeviceReading], int]) -> Plant:
    def change(reading: DeviceReading) -> DeviceReading:
        new = {MemoryKind(name): value(reading) for name, value in changes.items()}
        return replace(reading, kinds={**reading.kinds, **new})

    return on_reading(change)


def on_state(change: Callable[[AllocatorState], AllocatorState]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        allocator = SimulatedGpu.allocator
        patch.setattr(SimulatedGpu, "allocator", lambda self: change(allocator(self)))

    return plant


def no_own_list(patch: pytest.MonkeyPatch) -> None:
    def everybody(self: CudaMemory, use: DeviceUse) -> int:
        return sum((use.processes or {}).values())

    patch.setattr(CudaMemory, "_own", everybody)


def runtime_follows(patch: pytest.MonkeyPatch) -> None:
    """Settled again at each reading, the runtime takes in what nobody explains."""
    read = CudaMemory.read

    def settled(self: CudaMemory) -> DeviceReading:
        self.settle()
        return read(self)

    patch.setattr(CudaMemory, "read", settled)


def first_pid(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cuda_memory, "_own_pid", lambda before, after, pid: next(iter(after.processes)))


PLANTED: dict[str, Plant] = {
    "slack counted twice": kinds(
        allocator_slack=lambda reading: 2 * reading.kinds[MemoryKind.ALLOCATOR_SLACK]
    ),
    "graphs in slack": kinds(
        allocator_slack=lambda reading: (
            reading.kinds[MemoryKind.ALLOCATOR_SLACK] + reading.kinds[MemoryKind.GRAPHS]
        )
    ),
    "graphs forgotten": kinds(graphs=lambda reading: 0),
    "others in runtime": kinds(
        runtime=lambda reading: (
            reading.kinds[MemoryKind.RUNTIME] + reading.kinds[MemoryKind.OTHER_PROCESSES]
        ),
        other_processes=lambda reading: 0,
    ),
    "the driver's share forgotten": kinds(
        other_processes=lambda reading: (
            reading.kinds[MemoryKind.OTHER_PROCESSES]
            - reading.parts[MemoryKind.OTHER_PROCESSES]["driver"]
        )
    ),
    "the libraries' workspace in no kind": kinds(workspace=lambda reading: 0),
    "the cache of freed blocks called free": kinds(
        free=lambda reading: (
            reading.kinds[MemoryKind.FREE] + reading.parts[MemoryKind.ALLOCATOR_SLACK]["free"]
        )
    ),
    "what waits for a stream forgotten": on_state(lambda state: replace(state, pending=0)),
    "rounding called use": on_state(
        lambda state: replace(state, in_use=state.in_use + state.rounding, rounding=0)
    ),
    "every process taken for ours": no_own_list,
    "another process taken for ours": first_pid,
    "a runtime that follows": runtime_follows,
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[name](monkeypatch)
    gpu, memory = serving(neighbours={5: 2000 * MIB})
    everything(gpu)
    reading = reader(gpu, memory)()
    assert sum(reading[kind] for kind in MemoryKind) == reading["total"]  # this shows nothing
    with pytest.raises(AssertionError):
        assert_true(gpu, reading)

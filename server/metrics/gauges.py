"""What has a value now, read at a scrape and written as plain data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

from server.host_budget import Use
from server.memory.accounting.reading import MAY_BE_ESTIMATED, KindReading, MemoryReading
from server.memory.kinds import MemoryKind
from server.metrics import registry
from server.metrics.spec import MetricSpec

LabelValue = TypeVar("LabelValue", bound=str)
Samples = list[tuple[tuple[str, ...], float]]  # label values in the metric's order, value


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What stays as it is for the server's life. ``quantization`` is "none" or a format."""

    name: str
    dtype: str
    quantization: str
    version: str
    block_size: int  # tokens
    num_blocks: int
    cache_dtype: str


@dataclass(frozen=True, slots=True)
class GaugeSources:
    """Where gauges come from at a scrape. Each returns at once.

    ``engine`` names are EngineGauges' fields; ``memory`` gives a reading of the accountant (None
    before the first one), ``planned`` its planned bytes by kind and ``weights`` the measured
    (component, format, bytes). ``host_bytes`` is the API process's own resident set and
    ``api_budget`` the reading of its HostBudget. ``clock`` is the engine's: seconds, monotonic, one
    for all processes of a machine.
    """

    engine: Callable[[], Mapping[str, int]]
    engine_up: Callable[[], bool]
    memory: Callable[[], MemoryReading | None]
    planned: Callable[[], Mapping[str, int]]
    weights: Callable[[], Iterable[tuple[str, str, int]]]
    host_bytes: Callable[[], int]
    api_budget: Callable[[], Mapping[str, int]]
    device: str  # as --device names it
    model: ServedModel | None = None
    clock: Callable[[], float] = time.monotonic


def read_gauges(sources: GaugeSources) -> Iterator[tuple[MetricSpec, Samples]]:
    """Every gauge with its samples. A figure that was not measured has none, not 0."""
    yield from _engine(sources)
    yield from _memory(sources)
    if sources.model is not None:
        model = sources.model
        facts = (model.name, model.dtype, model.quantization, model.version)
        yield registry.MODEL_INFO, [(facts, 1)]
        cache = (str(model.block_size), str(model.num_blocks), model.cache_dtype)
        yield registry.KV_CACHE_INFO, [(cache, 1)]


_PLAIN: tuple[tuple[MetricSpec, str], ...] = (
    (registry.REQUESTS_RUNNING, "requests_running"),
    (registry.REQUESTS_WAITING, "requests_waiting"),
    (registry.SEQUENCES_RUNNING, "sequences_running"),
    (registry.WAITING_TOKENS, "waiting_tokens"),
    (registry.FAILED_STEPS, "failed_steps"),
)
_TOKENS = {
    "capacity": "kv_tokens_capacity",
    "reserved": "kv_tokens_reserved",
    "filled": "kv_tokens_filled",
}


def _engine(sources: GaugeSources) -> Iterator[tuple[MetricSpec, Samples]]:
    engine = sources.engine()
    yield registry.ENGINE_UP, [((), int(sources.engine_up()))]
    for metric, name in _PLAIN:
        yield metric, [((), engine.get(name, 0))]
    yield registry.QUEUE_AGE, [((), _queue_age(engine, sources.clock()))]
    blocks = {
        "live": engine.get("blocks_active", 0) + engine.get("blocks_reserved", 0),
        "cached": engine.get("blocks_cached", 0),
        "free": engine.get("blocks_free", 0),
    }
    yield registry.KV_USAGE, [((), blocks["live"] / max(1, engine.get("blocks_total", 0)))]
    yield registry.KV_BLOCKS, _by(blocks)
    preempted = engine.get("sequences_preempted", 0)
    queued = engine.get("sequences_waiting", 0) - preempted
    yield registry.SEQUENCES_WAITING, _by({"queued": queued, "preempted": preempted})
    yield registry.KV_TOKENS, _by({state: engine.get(name, 0) for state, name in _TOKENS.items()})


def _queue_age(engine: Mapping[str, int], now: float) -> float:
    """Grows between two publications too, also when the engine has come to stand still."""
    arrived_us = engine.get("oldest_queued_at_us", 0)
    return max(0.0, now - arrived_us / 1e6) if arrived_us else 0.0


def _memory(sources: GaugeSources) -> Iterator[tuple[MetricSpec, Samples]]:
    """Without a reading there is no engine: its device is not empty, only not measured."""
    device, reading = sources.device, sources.memory()
    kinds = {} if reading is None else reading.kinds
    yield registry.MEMORY, _by({kind: held.now for kind, held in kinds.items()}, device)
    yield registry.MEMORY_PEAK, _by({kind: held.peak for kind, held in kinds.items()}, device)
    yield registry.MEMORY_PLANNED, _by(sources.planned(), device)
    yield registry.MEMORY_PARTS, _parts(kinds, device)
    estimated = {kind: int(kinds[kind].estimated) for kind in MAY_BE_ESTIMATED if kind in kinds}
    yield registry.MEMORY_ESTIMATED, _by(estimated, device)
    yield registry.KV_BYTES, _by(kinds[MemoryKind.KV_CACHE].parts if kinds else {})
    yield registry.MEMORY_TOTAL, [] if reading is None else [((device,), reading.total)]
    weights = () if reading is None else sources.weights()
    yield registry.WEIGHTS, [((device, part, dtype), size) for part, dtype, size in weights]
    yield registry.HOST_MEMORY, _by(_host(sources.host_bytes(), reading))
    budget = sources.api_budget()
    yield registry.API_MEMORY, _by({str(use): budget[use] for use in Use})
    yield registry.API_MEMORY_BUDGET, [((), budget["budget"])]
    yield registry.API_MEMORY_PEAK, [((), budget["peak"])]
    yield registry.ALLOCATOR, _by({} if reading is None else asdict(reading.allocator), device)


def _parts(kinds: Mapping[MemoryKind, KindReading], device: str) -> Samples:
    return [
        ((device, kind, part), nbytes)
        for kind in registry.KINDS_WITH_PARTS
        if kind in kinds
        for part, nbytes in kinds[kind].parts.items()
    ]


def _host(api_process: int, reading: MemoryReading | None) -> dict[str, int]:
    held = {"api_process_resident": api_process}
    if reading is not None:
        engine = reading.host
        held |= {"engine_process_resident": engine.resident, "pinned": engine.pinned}
        held["shared"] = engine.shared
    return held


def _by(values: Mapping[LabelValue, float], *before: str) -> Samples:
    return [((*before, label), value) for label, value in values.items()]

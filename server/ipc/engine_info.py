"""What the engine process is built from, and what it measured while it was built. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from server.engine.engine_config import EngineConfig
from server.engine.gauges import EngineGauges
from server.memory.accounting.reading import NAMES, MemoryReading, flatten, unflatten


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything that the engine process needs to build itself. Every size is decided.

    ``cuda_graphs`` is the option of that name; a CPU does not heed it.
    """

    model_dir: str
    config: EngineConfig
    num_threads: int
    log_format: str = "text"
    debug_check_invariants: bool = False
    cuda_graphs: str = "lazy"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a ready engine knows of itself. Bytes and seconds as named.

    ``weights`` are measured bytes by component; ``skipped`` the tensors of the folder that were
    not read, with the reason. ``kernel_cache`` is the folder of the kernels compiled for a GPU.
    ``largest_step_seconds`` is what the largest step takes, by what the warm-up measured of it.
    """

    weights: dict[str, int]
    weights_format: str
    load_seconds: float
    ready_seconds: float
    torch_version: str
    num_threads: int
    cpu_capability: str  # of a GPU its name
    skipped: tuple[str, ...] = ()
    kernel_cache: str | None = None
    largest_step_seconds: float = 0.0


_ENGINE, _MEMORY = "engine.", "memory."

# Names in the block, made once: they are asked for after every step.
_ENGINE_NAMES = MappingProxyType(
    {field.name: _ENGINE + field.name for field in fields(EngineGauges)}
)
_MEMORY_NAMES = MappingProxyType({name: _MEMORY + name for name in NAMES})

# The layout of the gauge block that the two processes share.
GAUGE_NAMES: tuple[str, ...] = (*_ENGINE_NAMES.values(), *_MEMORY_NAMES.values())


def gauge_values(engine: EngineGauges, memory: MemoryReading) -> dict[str, int]:
    """What the engine process publishes."""
    values = {name: getattr(engine, field) for field, name in _ENGINE_NAMES.items()}
    values.update({_MEMORY_NAMES[name]: value for name, value in flatten(memory).items()})
    return values


def engine_gauges(values: Mapping[str, int]) -> dict[str, int]:
    """EngineGauges' fields out of a block's values."""
    return _under(_ENGINE, values)


def memory_reading(values: Mapping[str, int]) -> MemoryReading | None:
    """The accountant's reading out of a block's values; None before the first one."""
    reading = unflatten(_under(_MEMORY, values))
    return reading if reading.total else None


def _under(prefix: str, values: Mapping[str, int]) -> dict[str, int]:
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }

"""What a backend's record names for plans, the memory account and the runner. No torch."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace

from kernels.backends import KernelBackend
from server.engine.engine_config import EngineConfig, ModelConfig
from server.memory.accounting.reading import MemoryReading
from server.memory.kinds import MemoryKind, Shapes
from server.memory.phases import Phase
from server.memory.runner_buffers import LogitLimits
from weights.inventory import QUANTISABLE, Parameter, held_format, tally
from weights.spec import ModelSpec
from weights.tensor_parallel import rank_shape


@dataclass(frozen=True, slots=True)
class Accounting:
    """How the memory of such a device is told of.

    ``formulas`` and ``notes`` are made of a reading; ``hidden_parts`` are those of a kind that this
    device never has. ``slack`` and ``runtime`` say of a plan what its estimates are kept for.
    ``own_allocator`` says that an allocator of the device's own tells its largest free piece, and
    that libraries take scratch from it, which is told apart.
    """

    formulas: Callable[[MemoryReading | None], dict[str, str]]
    notes: Callable[[MemoryReading], Iterator[str]]
    hidden_parts: frozenset[tuple[MemoryKind, str]]
    slack: str
    runtime: str
    own_allocator: bool


def no_buffers(model: ModelSpec, config: EngineConfig) -> Shapes:
    return ()


def layers_matrices(model: ModelSpec) -> Container[str]:
    return QUANTISABLE


def plain_bytes(model: ModelSpec, parameter: Parameter, how: ModelConfig) -> int:
    return parameter.num_bytes(how.format, how.quantization)


def plain_weights(model: ModelSpec, how: ModelConfig) -> dict[str, int]:
    """Bytes of a rank's weights by component of the inventory, held as their formats say."""
    by_component: dict[str, int] = {}
    for parameter, times in tally(model).items():
        held = replace(parameter, shape=rank_shape(parameter, how.ranks))
        nbytes = times * held.num_bytes(how.format, how.quantization)
        component = str(parameter.component)
        by_component[component] = by_component.get(component, 0) + nbytes
    return by_component


@dataclass(frozen=True, slots=True)
class Parts:
    """The code of a backend that needs no device.

    ``phases`` lists the intermediates of a step of so many tokens and rows of logits,
    ``logit_limits`` says how these rows are cut, ``auto_format`` is --dtype auto of a checkpoint's
    format, ``buffers`` lists what it keeps beside the runner's buffers
    (server.memory.runner_buffers), the KV cache, the rotary tables and attention's scratch.

    ``quantised`` are the components that --quantization is for, ``weights`` the bytes of a rank's
    weights by component as the backend holds them, and ``parameter_bytes`` those of one parameter,
    without what pads the matrix that it is part of.
    """

    kernels: KernelBackend
    accounting: Accounting
    logit_limits: Callable[[ModelSpec, EngineConfig], LogitLimits]
    phases: Callable[[ModelSpec, EngineConfig, int, int], tuple[Phase, ...]]
    auto_format: Callable[[ModelSpec, str], str]
    quantised: Callable[[ModelSpec], Container[str]] = layers_matrices
    weights: Callable[[ModelSpec, ModelConfig], dict[str, int]] = plain_weights
    parameter_bytes: Callable[[ModelSpec, Parameter, ModelConfig], int] = plain_bytes
    buffers: Callable[[ModelSpec, EngineConfig], Shapes] = no_buffers

    def held_format(self, model: ModelSpec, component: str, how: ModelConfig) -> str:
        """The format that a component's parameters are held in."""
        return held_format(component, how.format, how.quantization, self.quantised(model))

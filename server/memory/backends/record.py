"""One record for each backend: what a model runs on, and all that follows from it. No torch.

A third backend is one such record and a folder of kernels: plans, buffers, the memory account and
the runner ask the record, and nobody asks for a backend's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from kernels.backends import KernelBackend
from server.engine.engine_config import EngineConfig
from server.memory.accounting.reading import MemoryReading
from server.memory.kinds import MemoryKind, Shapes
from server.memory.phases import Phase
from server.memory.runner_buffers import LogitLimits
from weights.formats import QuantisedFormat
from weights.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Defaults:
    """What sizes come to where the operator leaves them open. Tokens and sequences."""

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int


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


@dataclass(frozen=True, slots=True)
class Backend:
    """What a model runs on.

    ``name`` is what --device, /version and /memory call it, ``place`` what a message does ("a
    GPU"). ``phases`` lists the intermediates of a step of so many tokens and rows of logits,
    ``logit_limits`` says how these rows are cut, and ``buffers`` lists what it keeps beside the
    runner's buffers (server.memory.runner_buffers), the KV cache, the rotary tables and attention's
    scratch. ``device`` and ``open_device`` are "module:function", imported by the engine process
    only, because they need torch.
    """

    name: str
    place: str
    kernels: KernelBackend
    defaults: Defaults
    accounting: Accounting
    logit_limits: Callable[[ModelSpec, EngineConfig], LogitLimits]
    phases: Callable[[ModelSpec, EngineConfig, int, int], tuple[Phase, ...]]
    auto_format: Callable[[ModelSpec, str], str]  # --dtype auto, of a checkpoint's format
    device: str  # () -> server.execution.device.Device
    open_device: str  # (EngineConfig, model folder) -> OpenedDevice, before the model
    equal_bits: str  # what promises equal requests more than 16 bits do
    quantisations: tuple[str, ...] = ()  # that --quantization may name
    suggested_quantisations: tuple[str, ...] = ()  # of these, when memory is short
    packed_formats: tuple[QuantisedFormat, ...] = ()  # that no other backend knows
    batch_invariant: bool = False  # whether --batch-invariant is served
    captures_graphs: bool = False
    compiles_kernels: bool = False  # when a form of one is first run
    own_memory: bool = False  # the device has memory of its own, which nothing else needs
    weighs_dtype: bool = False  # 16-bit products may be slower than float32's: auto times them
    max_head_dim: int | None = None
    max_width: int | None = None  # of a row that is normalised
    buffers: Callable[[ModelSpec, EngineConfig], Shapes] = no_buffers

    def __post_init__(self) -> None:
        missing = set(self.suggested_quantisations) - set(self.quantisations)
        if missing:
            raise ValueError(f"{self.name} suggests {sorted(missing)}, which it does not serve")

    @property
    def torch_device(self) -> str:
        """The type of its tensors' device, as torch names it."""
        return self.kernels.device_type

    def load(self, where: str) -> Any:
        """The function "module:function" of this record."""
        module, _, function = where.partition(":")
        return getattr(import_module(module), function)

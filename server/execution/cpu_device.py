"""The CPU as a device: what is handed over is done at once."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from kernels.cpu.native.levels import choose_level, chosen_level
from server.engine.engine_config import EngineConfig
from server.execution.device import Event, Graph, OpenedDevice, Work
from server.execution.library_warm_up import warm_libraries
from server.execution.live_bytes import LiveBytes
from server.memory.accounting.cpu import CpuMemory
from server.memory.accounting.process import take
from weights.checkpoint.folder import open_checkpoint
from weights.families import resolve


@dataclass(frozen=True, slots=True)
class HostEvent:
    """A moment, which has passed."""

    seconds: float

    is_done = True

    def wait(self) -> None:
        """Nothing is under way."""

    def seconds_since(self, earlier: Event) -> float:
        if not isinstance(earlier, HostEvent):
            raise ValueError(f"{type(earlier).__name__} is not an event of this device")
        return self.seconds - earlier.seconds


class CpuDevice:
    """This machine's processors, and its memory."""

    overlaps = False
    kernel_cache: str | None = None

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")

    @property
    def description(self) -> str:
        """The instructions that torch's products use."""
        return torch.backends.cpu.get_cpu_capability()

    def copies(self) -> None:
        """What is read is there."""

    def peak_meter(self) -> LiveBytes:
        """Sees each tensor that an operation makes."""
        return LiveBytes()

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    @torch.inference_mode()
    def run(self, work: Work) -> None:
        work()

    def record(self) -> HostEvent:
        return HostEvent(perf_counter())

    def capture(self, work: Work) -> Graph:
        """Raises NotImplementedError: nothing is started, so there is nothing to capture."""
        raise NotImplementedError("a CPU captures no steps")

    def replay(self, graph: Graph) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError("a CPU captures no steps")

    def synchronize(self) -> None:
        """Everything is done."""


class NativeCpuDevice(CpuDevice):
    """The same, computed on by native kernels."""

    @property
    def description(self) -> str:
        """The level of the kernels."""
        return chosen_level().name.upper()


def open_cpu(config: EngineConfig, model_dir: Path) -> OpenedDevice:
    """Makes the libraries set themselves up, then takes the base reading.

    Raises:
        CheckpointError: the folder is refused.
    """
    document = open_checkpoint(model_dir).config
    warm_libraries(config, resolve(document).spec(document))
    gc.collect()
    return OpenedDevice(CpuDevice(), CpuMemory(take()))


def open_native(config: EngineConfig, model_dir: Path) -> OpenedDevice:
    """As open_cpu; native kernels keep nothing that the layout does not list. Placement has seen
    that the level runs here.

    Raises:
        CheckpointError: the folder is refused.
    """
    open_checkpoint(model_dir)
    if config.model.cpu_level is not None:
        choose_level(config.model.cpu_level)
    gc.collect()
    return OpenedDevice(NativeCpuDevice(), CpuMemory(take()))

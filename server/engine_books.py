"""The engine's books: its device is opened and read before the model is loaded, and joined to what
the engine holds afterwards.

    open_device --> libraries set up, base reading --> the model is loaded --> join_books
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.engine.core import EngineCore
from server.engine.gauges import EngineGauges
from server.engine_facts import GAUGE_NAMES, EngineSettings
from server.execution.build import BuiltRunner, device_of
from server.execution.device import CudaDevice
from server.execution.gpu_memory import open_gpu
from server.execution.gpu_runner import GpuRunner
from server.execution.library_warm_up import warm_libraries
from server.ipc.gauges import GaugeBlock
from server.memory.accountant import Books, KVUse
from server.memory.cpu_memory import CpuMemory
from server.memory.cuda_memory import CudaMemory, steady
from server.memory.gpu_device import find_gpu
from server.memory.layout import MemoryKind
from server.memory.reading import HostUse
from server.memory.snapshot import process_resident, take
from weights.checkpoint import open_checkpoint
from weights.families import resolve


@dataclass(frozen=True, slots=True)
class OpenedDevice:
    """``gpu`` is None on the CPU."""

    memory: CpuMemory | CudaMemory
    gpu: CudaDevice | None = None


def open_device(settings: EngineSettings) -> OpenedDevice:
    """Makes the libraries set themselves up, then takes the base reading.

    Raises:
        StartupError: there is no GPU that torch can use, where the settings want one.
        CheckpointError: the folder is refused.
    """
    if not settings.runner.on_gpu:
        config = open_checkpoint(Path(settings.model_dir)).config
        warm_libraries(settings.runner, resolve(config).spec(config))
        gc.collect()
        return OpenedDevice(CpuMemory(take()))
    found = find_gpu()
    nvml = None if found is None else found.nvml
    before = None if nvml is None else steady(nvml.read)  # torch makes a context below
    index = device_of(settings.runner).index or 0
    gpu, memory = open_gpu(nvml, before, index, settings.runner.format)
    return OpenedDevice(memory, gpu)


def join_books(opened: OpenedDevice, built: BuiltRunner, core: EngineCore) -> Books:
    """What the accountant looks at from now on. The engine is built: its runtime is settled."""
    if isinstance(opened.memory, CudaMemory):
        opened.memory.settle()
        if isinstance(built.runner, GpuRunner):
            built.runner.graphs.around_capture = opened.memory.loading

    def held_bytes() -> Mapping[MemoryKind, int]:
        return built.held.by_kind()

    def host() -> HostUse:
        return HostUse(
            resident=process_resident(),
            pinned=built.runner.slots.nbytes if isinstance(built.runner, GpuRunner) else 0,
            shared=GaugeBlock.size_bytes(len(GAUGE_NAMES)),
        )

    return Books(
        device=opened.memory,
        held_bytes=held_bytes,
        kv_use=lambda: kv_use(core.gauges()),
        kv_page_bytes=built.kv.page_bytes,
        kv_token_bytes=built.kv.groups[0].bytes_per_token,
        peak_activation_bytes=lambda: built.peak.peak_bytes,
        host=host,
    )


def kv_use(gauges: EngineGauges) -> KVUse:
    """A block that waits for a step in flight is as good as active."""
    return KVUse(
        active_blocks=gauges.blocks_active + gauges.blocks_reserved,
        cached_blocks=gauges.blocks_cached,
        reserved_tokens=gauges.kv_tokens_reserved,
        filled_tokens=gauges.kv_tokens_filled,
    )

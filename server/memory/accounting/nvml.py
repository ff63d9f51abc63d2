"""NVML: what the driver knows of a GPU's memory, without a context and for every process.

The library (nvidia-ml-py) is imported when it is first asked for. Where it is not installed, finds
no driver or cannot answer, the answer is None and the caller says so in what it shows.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODULE = "pynvml"


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """total = free + driver + what processes use. Bytes.

    ``processes`` maps a process id, as the driver numbers them, to what it uses; None where the
    driver does not tell.
    """

    total: int
    free: int
    driver: int = 0
    processes: Mapping[int, int] | None = None


class Nvml:
    """One device. Make it with ``open_nvml``."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    def read(self) -> DeviceUse | None:
        """None where the driver does not answer any more."""
        try:
            memory = self._memory()
            return DeviceUse(
                total=int(memory.total),
                free=int(memory.free),
                driver=int(getattr(memory, "reserved", 0)),
                processes=self._processes(),
            )
        except self._library.NVMLError:
            return None

    def _memory(self) -> Any:
        """The second version tells apart what the driver keeps; the first counts it as used."""
        try:
            version = self._library.nvmlMemory_v2
            return self._library.nvmlDeviceGetMemoryInfo(self._handle, version=version)
        except (self._library.NVMLError, AttributeError):
            return self._library.nvmlDeviceGetMemoryInfo(self._handle)

    def _processes(self) -> dict[int, int] | None:
        """A process that computes and draws is in both lists, with the same figure."""
        found: dict[int, int] = {}
        for ask in (
            "nvmlDeviceGetComputeRunningProcesses",
            "nvmlDeviceGetGraphicsRunningProcesses",
        ):
            try:
                listed = getattr(self._library, ask)(self._handle)
            except self._library.NVMLError:
                return None
            for process in listed:
                if process.usedGpuMemory is None:
                    return None
                used = int(process.usedGpuMemory)
                found[int(process.pid)] = max(used, found.get(int(process.pid), 0))
        return found


def open_nvml(uuid: str, bus_id: str, module: str = MODULE) -> Nvml | None:
    """The device of that identity: NVML and CUDA number devices differently.

    ``uuid`` is 32 hexadecimal digits with dashes: of a whole device, or of a part of one (MIG).
    ``bus_id`` is asked where the identity is not known. None where there is no NVML.
    """
    try:
        library = importlib.import_module(module)
    except ImportError:
        return None
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    for ask, name in (
        ("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}"),
        ("nvmlDeviceGetHandleByUUID", f"MIG-{uuid}"),
        ("nvmlDeviceGetHandleByPciBusId", bus_id),
    ):
        try:
            return Nvml(library, getattr(library, ask)(name))
        except library.NVMLError:
            continue
    return None

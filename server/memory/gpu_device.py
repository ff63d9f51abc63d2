"""Which GPU there is, and how much of its memory is free: asked of the driver, without torch.

The driver's library counts the devices that this process may use (CUDA_VISIBLE_DEVICES included)
and names them; the management library reads memory without making a context, which would itself
take some hundred MiB. The engine process asks torch again, and has the last word.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_DRIVER, _MANAGEMENT = "libcuda.so.1", "libnvidia-ml.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 256
_BUS_ID_BYTES = 32
_BF16_FROM = (8, 0)  # the first architecture with bfloat16 tensor cores

Open = Callable[[str], Any]  # a shared library by name; OSError where there is none


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """The first GPU that this process may use. Bytes."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int

    @property
    def is_served(self) -> bool:
        return self.capability >= _BF16_FROM


class _NvmlMemory(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_ulonglong) for name in ("total", "free", "used"))


def find_gpu(open_library: Open = ctypes.CDLL) -> GpuDevice | None:
    """The device, or None where there is no driver or no device that this process may use."""
    try:
        driver = open_library(_DRIVER)
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    if driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    name = ctypes.create_string_buffer(_NAME_BYTES)
    total = ctypes.c_size_t()
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    major, minor = (_attribute(driver, device, which) for which in (_MAJOR, _MINOR))
    memory = _memory(driver, device, open_library)
    return GpuDevice(
        name=name.value.decode("utf-8", "replace"),
        capability=(major, minor),
        total=total.value if memory is None else int(memory.total),
        free=total.value if memory is None else int(memory.free),
    )


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA; found without importing it."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return False
    return (Path(found.origin).parent / "lib" / "libtorch_cuda.so").exists()


def _attribute(driver: Any, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value


def _memory(driver: Any, device: ctypes.c_int, open_library: Open) -> _NvmlMemory | None:
    """By the bus id, because the two libraries number devices differently."""
    bus_id = ctypes.create_string_buffer(_BUS_ID_BYTES)
    if driver.cuDeviceGetPCIBusId(bus_id, _BUS_ID_BYTES, device):
        return None
    try:
        management = open_library(_MANAGEMENT)
    except OSError:
        return None
    handle, memory = ctypes.c_void_p(), _NvmlMemory()
    if (
        management.nvmlInit_v2()
        or management.nvmlDeviceGetHandleByPciBusId_v2(bus_id, ctypes.byref(handle))
        or management.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    ):
        return None
    return memory

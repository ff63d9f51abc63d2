"""Which GPU there is, and how much of its memory is free: asked of the driver, without torch.

The driver's library counts the devices that this process may use (CUDA_VISIBLE_DEVICES included)
and names them; NVML (server.memory.accounting.nvml) reads the memory of the same device, found by
its identity, without making a context, which would itself take some hundred MiB. The engine process
asks torch again, and has the last word.
"""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from server.memory.accounting.nvml import DeviceUse, Nvml, open_nvml

_DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 256
_BUS_ID_BYTES = 32
_UUID_BYTES = 16
_BF16_FROM = (8, 0)  # the first architecture with bfloat16 tensor cores

Open = Callable[[str], Any]  # a shared library by name; OSError where there is none
OpenNvml = Callable[[str, str], Nvml | None]  # by identity and bus id


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """The first GPU that this process may use. Bytes.

    ``nvml`` reads its memory as the driver sees it; None where there is no NVML, and then ``free``
    is all of ``total``, because what is used is unknown.
    """

    name: str
    capability: tuple[int, int]
    total: int
    free: int
    nvml: Nvml | None = field(default=None, compare=False)

    @property
    def is_served(self) -> bool:
        return self.capability >= _BF16_FROM


def find_gpu(
    open_library: Open = ctypes.CDLL, open_management: OpenNvml = open_nvml
) -> GpuDevice | None:
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
    nvml = open_management(_identity(driver, device), _bus_id(driver, device))
    use = (None if nvml is None else nvml.read()) or DeviceUse(total.value, total.value)
    return GpuDevice(
        name=name.value.decode("utf-8", "replace"),
        capability=(major, minor),
        total=use.total,
        free=use.free,
        nvml=nvml,
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


def _identity(driver: Any, device: ctypes.c_int) -> str:
    """Of the device, or of the part of one that this process may use; empty where unknown."""
    raw = ctypes.create_string_buffer(_UUID_BYTES)
    if driver.cuDeviceGetUuid_v2(raw, device):
        return ""
    return str(uuid.UUID(bytes=raw.raw))


def _bus_id(driver: Any, device: ctypes.c_int) -> str:
    text = ctypes.create_string_buffer(_BUS_ID_BYTES)
    if driver.cuDeviceGetPCIBusId(text, _BUS_ID_BYTES, device):
        return ""
    return text.value.decode("ascii", "replace")

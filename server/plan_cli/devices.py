"""Devices to plan for: what a data sheet and the driver say about them. Data alone.

Memory is the total that nvidia-smi prints for the board, which is what a server can have at most:
the data sheet's figure, in other units, less what the driver keeps. Bandwidth and FLOP/s are the
data sheet's, for dense matrices (a figure "with sparsity" is halved) with float32 sums.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from server.config.values import read_size
from server.errors import StartupError
from server.memory.backends.registry import AUTO, devices
from server.memory.backends.triton_cuda import TRITON

MIB = 2**20
PUBLISHED_FOR = TRITON.device  # what all the published devices are
LEAST_BYTES, MOST_BYTES = 2**30, 2**44  # of a device of a given size
_ANY_CAPABILITY = (9, 0)  # of a size without a name


@dataclass(frozen=True, slots=True)
class Device:
    """``bandwidth`` in bytes a second; ``flops_16bit`` and ``flops_fp8`` in FLOP/s of dense
    products, None where unknown or not there."""

    name: str
    title: str
    memory_bytes: int
    bandwidth: float | None
    flops_16bit: float | None
    flops_fp8: float | None
    capability: tuple[int, int]
    source: str


DEVICES: tuple[Device, ...] = (
    Device(
        *("h200", "NVIDIA H200 SXM", 143771 * MIB, 4.8e12, 989e12, 1979e12, (9, 0)),
        source="NVIDIA H200 data sheet: 141 GB, 4.8 TB/s, 1979/3958 TFLOPS with sparsity",
    ),
    Device(
        *("h100", "NVIDIA H100 SXM 80 GB", 81559 * MIB, 3.35e12, 989e12, 1979e12, (9, 0)),
        source="NVIDIA H100 data sheet: 80 GB, 3.35 TB/s, 1979/3958 TFLOPS with sparsity",
    ),
    Device(
        *("h100-pcie", "NVIDIA H100 PCIe 80 GB", 81559 * MIB, 2.0e12, 756e12, 1513e12, (9, 0)),
        source="NVIDIA H100 data sheet: 80 GB, 2 TB/s, 1513/3026 TFLOPS with sparsity",
    ),
    Device(
        *("a100-80", "NVIDIA A100 SXM 80 GB", 81920 * MIB, 2.039e12, 312e12, None, (8, 0)),
        source="NVIDIA A100 data sheet: 80 GB, 2039 GB/s, 312 TFLOPS",
    ),
    Device(
        *("a100-40", "NVIDIA A100 SXM 40 GB", 40960 * MIB, 1.555e12, 312e12, None, (8, 0)),
        source="NVIDIA A100 data sheet: 40 GB, 1555 GB/s, 312 TFLOPS",
    ),
    Device(
        *("l40s", "NVIDIA L40S", 46068 * MIB, 0.864e12, 362.05e12, 733e12, (8, 9)),
        source="NVIDIA L40S data sheet: 48 GB, 864 GB/s, 362/733 TFLOPS",
    ),
    Device(
        *("l4", "NVIDIA L4", 23034 * MIB, 0.3e12, 121e12, 242.5e12, (8, 9)),
        source="NVIDIA L4 data sheet: 24 GB, 300 GB/s, 242/485 TFLOPS with sparsity",
    ),
    Device(
        *("rtx-4090", "NVIDIA GeForce RTX 4090", 24564 * MIB, 1.008e12, 165.2e12, 330.3e12, (8, 9)),
        source="NVIDIA Ada architecture paper, appendix A: 24 GB, 1008 GB/s, 165/330 TFLOPS",
    ),
    Device(
        *("rtx-3090", "NVIDIA GeForce RTX 3090", 24576 * MIB, 0.936e12, 71e12, None, (8, 6)),
        source="NVIDIA GA102 architecture paper, appendix A: 24 GB, 936 GB/s, 71 TFLOPS",
    ),
)


def this_machine() -> tuple[str, ...]:
    """The names that mean a device of this machine, as it is now."""
    return AUTO, *devices()


def find_device(text: str) -> Device:
    """The device of a name, or one of a size such as 24GiB of which nothing else is known.

    Raises StartupError that says what there is.
    """
    if not text.strip():
        raise StartupError("--device is empty: name a device, or leave it out for this machine")
    wanted = text.strip().lower()
    for device in DEVICES:
        if device.name == wanted:
            return device
    if not wanted[:1].isdigit():
        names = [device.name for device in DEVICES]
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise StartupError(
            f"--device {text}: unknown; {hint}known are {', '.join((*this_machine(), *names))}, "
            "or a size such as 24GiB"
        )
    try:
        nbytes = read_size(text, LEAST_BYTES, MOST_BYTES)
    except ValueError as error:
        raise StartupError(f"--device {text}: {error}") from None
    title = "a GPU of that size"
    return Device(
        text, title, nbytes, None, None, None, _ANY_CAPABILITY, source="a size that was given"
    )

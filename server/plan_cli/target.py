"""The device that is planned for, as the server would find it there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from server.config.server_config import ServerConfig
from server.memory.accounting.gpu_device import GpuDevice
from server.memory.accounting.process import machine_memory
from server.plan_cli.devices import DEVICES, MOST_BYTES, THIS_MACHINE, Device, find_device
from server.startup.placement import (
    CPU_RUNTIME_BYTES,
    GPU_RUNTIME_BYTES,
    Placement,
    gpu_memory_for,
    place,
)

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Target:
    """``device`` has the published figures, None for this machine's CPU or a GPU without any.

    ``other_bytes`` of ``total_bytes`` are other processes' now; ``runtime_bytes`` and
    ``slack_bytes`` are what placement keeps for what no list knows: estimates.
    """

    name: str
    title: str
    placement: Placement
    total_bytes: int
    other_bytes: int
    runtime_bytes: int
    slack_bytes: int
    device: Device | None


def find_target(name: str, config: ServerConfig) -> Target:
    """The named device, empty, or this machine as it is now (auto, cpu, cuda).

    Raises StartupError where there is none such, or an option is not for it.
    """
    if name in THIS_MACHINE:
        return _this_machine(_with_device(config, name))
    device = find_device(name)
    gpu = GpuDevice(device.title, device.capability, device.memory_bytes, device.memory_bytes)
    placement = place(_with_device(config, "cuda"), find=lambda: gpu, has_cuda=lambda: True)
    return _gpu_target(device.name, device.title, gpu, placement, device)


def _with_device(config: ServerConfig, device: str) -> ServerConfig:
    return replace(config, engine=replace(config.engine, device=device))


def larger_devices(target: Target, config: ServerConfig) -> list[Target]:
    """The named devices with more memory than a named or sized one, the smallest first."""
    if target.device is None:
        return []
    larger = [device for device in DEVICES if device.memory_bytes > target.total_bytes]
    larger.sort(key=lambda device: device.memory_bytes)
    return [find_target(device.name, config) for device in larger]


def device_that_leaves(available: int) -> str | None:
    """The option for a device of whole GiB that leaves so many bytes; None beyond the largest."""
    gib = math.ceil(gpu_memory_for(available) / GIB)
    return f"--device {gib}GiB" if gib * GIB <= MOST_BYTES else None


def _this_machine(config: ServerConfig) -> Target:
    placement = place(config)
    gpu = placement.gpu
    if gpu is None:
        total, _ = machine_memory()
        # The reading that placement planned with, so that the split adds up to the same sizes.
        runtime = CPU_RUNTIME_BYTES + placement.api_memory
        other = total - placement.available - runtime
        return Target("cpu", "this machine's memory", placement, total, other, runtime, 0, None)
    published = next((device for device in DEVICES if device.title.startswith(gpu.name)), None)
    return _gpu_target("cuda", gpu.name, gpu, placement, published)


def _gpu_target(
    name: str, title: str, gpu: GpuDevice, placement: Placement, device: Device | None
) -> Target:
    return Target(
        name=name,
        title=title,
        placement=placement,
        total_bytes=gpu.total,
        other_bytes=gpu.total - gpu.free,
        runtime_bytes=GPU_RUNTIME_BYTES,
        slack_bytes=gpu.free - placement.available - GPU_RUNTIME_BYTES,
        device=device,
    )

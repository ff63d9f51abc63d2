"""The device that is planned for, as the server would find it there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from server.config.server_config import ServerConfig
from server.errors import StartupError
from server.memory.accounting.gpu_device import GpuDevice
from server.memory.backends.record import Backend
from server.memory.backends.triton_cuda.parts import found_gpu, gpu_memory_for
from server.plan_cli.devices import (
    DEVICES,
    MOST_BYTES,
    PUBLISHED_FOR,
    Device,
    find_device,
    this_machine,
)
from server.startup.placement import Find, Placement, place
from weights.spec import ModelSpec

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


def find_target(name: str, config: ServerConfig, model: ModelSpec | None = None) -> Target:
    """The named device, empty, or this machine as it is now (auto, or what --device names).

    The backend is the one that a server of ``model`` would take, or, where none serves it, of any.

    Raises StartupError where there is none such, or an option is not for it.
    """
    if name in this_machine():
        return _this_machine(_with_device(config, name), model)
    device = find_device(name)
    gpu = GpuDevice(device.title, device.capability, device.memory_bytes, device.memory_bytes)
    there, found = _with_device(config, PUBLISHED_FOR), found_gpu(gpu)
    placement = _placed(there, model, lambda backend: found)
    return _target(device.name, placement, device)


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


def _placed(config: ServerConfig, model: ModelSpec | None, find: Find) -> Placement:
    try:
        return place(config, model, find=find)
    except StartupError:
        return place(config, find=find)  # refuses again, but for the model alone


def _this_machine(config: ServerConfig, model: ModelSpec | None) -> Target:
    placement = _placed(config, model, Backend.find_device)
    title = placement.found.title
    published = next((device for device in DEVICES if device.title.startswith(title)), None)
    return _target(placement.backend.device, placement, published)


def _target(name: str, placement: Placement, device: Device | None) -> Target:
    found, runtime = placement.found, placement.found.runtime
    if not placement.backend.own_memory:
        runtime += placement.api_memory
    return Target(
        name=name,
        title=found.title,
        placement=placement,
        total_bytes=found.total,
        other_bytes=found.total - placement.available - runtime - found.slack,
        runtime_bytes=runtime,
        slack_bytes=found.slack,
        device=device,
    )

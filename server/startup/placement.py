"""Where the model runs, and what follows from that for the sizes left to auto. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from server.config.server_config import ServerConfig
from server.errors import StartupError
from server.memory.accounting.gpu_device import GpuDevice, find_gpu, torch_has_cuda
from server.memory.accounting.process import machine_memory
from server.memory.backends.cpu import CPU
from server.memory.backends.cuda import CUDA
from server.memory.backends.record import Backend
from server.memory.backends.registry import backend_named
from server.memory.engine_args import EngineArgs
from server.memory.planner.resolve_args import batch_sizes
from server.startup.api_memory import api_memory
from server.startup.supported_models import unserved_by
from weights.spec import ModelSpec

# Of a GPU's free memory, kept for what no list knows: the context, loaded kernels, cuBLAS's
# workspace; and a share for what the caching allocator rounds up.
GPU_RUNTIME_BYTES = 1 << 30
GPU_SLACK_SHARE = 0.02

# Of the memory that is free on a CPU, kept for torch's code, what the engine process holds before a
# model is loaded, and what malloc rounds up: some 270 MiB measured.
CPU_RUNTIME_BYTES = 320 << 20


@dataclass(frozen=True, slots=True)
class Placement:
    """``gpu`` is None where the backend needs none. ``available`` are bytes for weights, cache and
    buffers, ``api_memory`` those of the host that clients of the API may make it hold."""

    backend: Backend
    gpu: GpuDevice | None
    available: int
    api_memory: int


def place(
    config: ServerConfig,
    *,
    find: Callable[[], GpuDevice | None] = find_gpu,
    has_cuda: Callable[[], bool] = torch_has_cuda,
) -> Placement:
    """Chooses the device for --device.

    Raises:
        StartupError: the device is not there or not served, or an option is not for it.
    """
    backend, gpu = _chosen(config.engine.device, find, has_cuda)
    _refuse_options(config.engine, backend)
    _, free = machine_memory()
    api = api_memory(config.api_memory, free, config.max_body_size)
    if gpu is None:
        available = max(0, free - CPU_RUNTIME_BYTES - api)
    else:
        available = int(gpu.free * (1 - GPU_SLACK_SHARE)) - GPU_RUNTIME_BYTES
    return Placement(backend, gpu, available, api)


def gpu_memory_for(available: int) -> int:
    """The memory of an empty GPU of which ``place`` makes so many bytes available, or some more."""
    return math.ceil((available + 1 + GPU_RUNTIME_BYTES) / (1 - GPU_SLACK_SHARE))


def refuse_model(model: ModelSpec, backend: Backend) -> None:
    """
    Raises:
        StartupError: the backend lacks an operation that the model needs, or has it for smaller
            models only; names it.
    """
    problem = unserved_by(backend, model)
    if problem is not None:
        raise StartupError(
            f"this model cannot run on {backend.place}: {problem}; --device {CPU.name} serves it"
        )


def _chosen(
    device: str, find: Callable[[], GpuDevice | None], has_cuda: Callable[[], bool]
) -> tuple[Backend, GpuDevice | None]:
    """The backend that --device names; for auto a GPU's where there is one that can be used."""
    if device not in ("auto", CUDA.name):
        return backend_named(device), None
    gpu = _usable(device, find, has_cuda)
    return (CPU, None) if gpu is None else (CUDA, gpu)


def _usable(
    device: str, find: Callable[[], GpuDevice | None], has_cuda: Callable[[], bool]
) -> GpuDevice | None:
    """The GPU, or None where auto finds none that can be used."""
    gpu = find()
    problem = None
    if gpu is None:
        problem = "no NVIDIA driver with a device was found"
    elif not has_cuda():
        problem = f"there is a {gpu.name}, but the installed torch is built without CUDA"
    elif not gpu.is_served:
        major, minor = gpu.capability
        problem = f"the {gpu.name} has compute capability {major}.{minor}; 8.0 is the minimum"
    if problem is None:
        return gpu
    if device != "auto":
        raise StartupError(f"--device cuda: {problem}; --device cpu serves without a GPU")
    return None


def _refuse_options(args: EngineArgs, backend: Backend) -> None:
    if args.quantization is not None and args.quantization not in backend.quantisations:
        raise StartupError(
            f"--quantization {args.quantization} needs a GPU, and this server computes on the "
            "CPU: leave it out, or take --dtype bfloat16 for half of float32's bytes"
        )
    if args.batch_invariant and not backend.batch_invariant:
        raise StartupError(
            "--batch-invariant needs a GPU, and this server computes on the CPU: leave it out; "
            "with --dtype float32 equal requests get equal tokens there"
        )
    batch_sizes(args, backend)

"""What a plan, the memory account and the runner need of the GPU's backend. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable

from kernels.backends import TRITON_CUDA
from server.engine.engine_config import EngineConfig
from server.memory.accounting.formulas import gpu_formulas, gpu_notes
from server.memory.accounting.gpu_device import GpuDevice, find_gpu, torch_has_cuda
from server.memory.backends.parts import Accounting, Parts
from server.memory.backends.record import FoundDevice, Unusable
from server.memory.backends.triton_cuda.intermediates import gpu_phases, table_rows
from server.memory.kinds import ELEMENT_BYTES
from server.memory.phases import Phase
from server.memory.runner_buffers import LogitLimits, few_num_tops
from weights.formats import tensor_bytes
from weights.spec import ModelSpec

# Of a GPU's free memory, kept for what no list knows: the context, loaded kernels, cuBLAS's
# workspace; and a share for what the caching allocator rounds up.
RUNTIME_BYTES = 1 << 30
SLACK_SHARE = 0.02


def find_cuda(
    find: Callable[[], GpuDevice | None] = find_gpu,
    has_cuda: Callable[[], bool] = torch_has_cuda,
) -> FoundDevice:
    """The first GPU that this process may use. Raises Unusable."""
    gpu = find()
    if gpu is None:
        raise Unusable("no NVIDIA driver with a device was found")
    if not has_cuda():
        raise Unusable(f"there is a {gpu.name}, but the installed torch is built without CUDA")
    if not gpu.is_served:
        major, minor = gpu.capability
        raise Unusable(f"the {gpu.name} has compute capability {major}.{minor}; 8.0 is the minimum")
    return found_gpu(gpu)


def found_gpu(gpu: GpuDevice) -> FoundDevice:
    slack = gpu.free - int(gpu.free * (1 - SLACK_SHARE))
    return FoundDevice(gpu.name, gpu.total, gpu.free, RUNTIME_BYTES, slack)


def gpu_memory_for(available: int) -> int:
    """The memory of an empty GPU of which ``found_gpu`` makes so many bytes available, or some
    more."""
    return math.ceil((available + 1 + RUNTIME_BYTES) / (1 - SLACK_SHARE))


def logit_limits(model: ModelSpec, config: EngineConfig) -> LogitLimits:
    """All rows of logits are sampled at once, but for those whose tables are set apart."""
    return LogitLimits(
        rows=config.scheduler.logit_rows,
        sampled_rows=config.scheduler.logit_rows,
        penalised_rows=table_rows(model.vocab_size),
        num_tops=few_num_tops(config.scheduler.max_logprobs),
    )


def step_phases(
    model: ModelSpec, config: EngineConfig, tokens: int, logit_rows: int
) -> tuple[Phase, ...]:
    return gpu_phases(
        model,
        tokens=tokens,
        rows=config.scheduler.max_num_seqs,
        element_bytes=ELEMENT_BYTES[config.model.format],
        logit_rows=logit_rows,
        num_top=config.scheduler.max_logprobs,
        quantization=config.model.quantization,
        batch_invariant=config.model.batch_invariant,
    )


def auto_format(model: ModelSpec, stored: str) -> str:
    """The checkpoint's own format where that has 16 bits, else bf16."""
    return stored if tensor_bytes((1,), stored) == 2 else "bf16"


PARTS = Parts(
    kernels=TRITON_CUDA,
    accounting=Accounting(
        formulas=gpu_formulas,
        notes=gpu_notes,
        hidden_parts=frozenset(),
        slack="2 % of {free} B, kept for what the allocator rounds up (estimated)",
        runtime="the driver's context and loaded kernels",
        own_allocator=True,
    ),
    logit_limits=logit_limits,
    phases=step_phases,
    auto_format=auto_format,
)

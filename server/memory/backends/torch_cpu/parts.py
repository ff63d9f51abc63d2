"""What a plan, the memory account and the runner need of torch's CPU backend. No torch."""

from __future__ import annotations

from dataclasses import replace

from kernels.backends import TORCH_CPU
from server.engine.engine_config import EngineConfig
from server.memory.accounting.formulas import cpu_formulas, cpu_notes
from server.memory.accounting.process import machine_memory
from server.memory.backends.parts import Accounting, Parts
from server.memory.backends.record import FoundDevice
from server.memory.intermediates import phases, sample_rows
from server.memory.kinds import MemoryKind
from server.memory.kv_groups import attention_shapes
from server.memory.phases import Phase
from server.memory.runner_buffers import LogitLimits
from weights.formats import tensor_bytes
from weights.inventory import num_parameters
from weights.spec import ModelSpec

SMALL_MODEL_BYTES = 2**30  # in float32; --dtype auto widens what takes no more

# Of the memory that is free, kept for torch's code, what the engine process holds before a model is
# loaded, and what malloc rounds up: some 270 MiB measured.
RUNTIME_BYTES = 320 << 20


def find_cpu() -> FoundDevice:
    """This machine, or what its container's limit leaves of it."""
    total, free = machine_memory()
    return FoundDevice("this machine's memory", total, free, RUNTIME_BYTES)


def logit_limits(model: ModelSpec, config: EngineConfig) -> LogitLimits:
    rows = sample_rows(model.vocab_size)
    return LogitLimits(
        config.scheduler.logit_rows,
        rows,
        rows,
        num_tops=tuple(range(config.scheduler.max_logprobs + 1)),
    )


def step_phases(
    model: ModelSpec, config: EngineConfig, tokens: int, logit_rows: int
) -> tuple[Phase, ...]:
    shapes = [
        replace(shape, max_num_batched_tokens=tokens) for shape in attention_shapes(model, config)
    ]
    num_top = config.scheduler.max_logprobs
    return phases(model, shapes, logit_rows=logit_rows, num_top=num_top)


def auto_format(model: ModelSpec, stored: str) -> str:
    """float32 for a small model, since only in float32 is an answer independent of what shares its
    batch; for a larger one the checkpoint's own, which server.startup.dtype_choice weighs against
    it."""
    in_float32 = num_parameters(model) * tensor_bytes((1,), "f32")
    return "f32" if in_float32 <= SMALL_MODEL_BYTES else stored


PARTS = Parts(
    kernels=TORCH_CPU,
    accounting=Accounting(
        formulas=cpu_formulas,
        notes=cpu_notes,
        hidden_parts=frozenset(
            {
                (MemoryKind.ALLOCATOR_SLACK, "pending"),
                (MemoryKind.ALLOCATOR_SLACK, "rounding"),
                (MemoryKind.UNACCOUNTED, "tensors"),
                (MemoryKind.UNACCOUNTED, "outside"),
                (MemoryKind.OTHER_PROCESSES, "driver"),
            }
        ),
        slack="on a CPU it is in the runtime's estimate",
        runtime="torch and loaded code",
        own_allocator=False,
    ),
    logit_limits=logit_limits,
    phases=step_phases,
    auto_format=auto_format,
)

"""An NVIDIA GPU as a backend: Triton's kernels, memory of its own. No torch."""

from __future__ import annotations

from kernels.backends import TRITON_CUDA
from server.engine.engine_config import EngineConfig
from server.memory.accounting.formulas import gpu_formulas, gpu_notes
from server.memory.backends.gpu_intermediates import gpu_phases, table_rows
from server.memory.backends.record import Accounting, Backend, Defaults
from server.memory.kinds import ELEMENT_BYTES
from server.memory.phases import Phase
from server.memory.runner_buffers import LogitLimits, few_num_tops
from weights.formats import tensor_bytes
from weights.spec import ModelSpec


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


CUDA: Backend = Backend(
    name="cuda",
    place="a GPU",
    kernels=TRITON_CUDA,
    defaults=Defaults(block_size=64, max_num_seqs=256, max_num_batched_tokens=8192),
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
    device="server.execution.device:open_cuda",
    open_device="server.execution.gpu_memory:open_gpu",
    equal_bits="--batch-invariant guarantees equal bits",
    quantisations=("int8", "int4", "fp8"),
    suggested_quantisations=("int8", "int4"),
    batch_invariant=True,
    captures_graphs=True,
    compiles_kernels=True,
    own_memory=True,
    max_head_dim=256,
    max_width=16384,
)

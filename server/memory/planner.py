"""Plans a server's memory before anything is loaded: sizes of the KV pool, and the split.

On a GPU the pool takes all that is left, or the budget where that is less. On a CPU, whose memory
is everybody's, it takes the least of three: the budget (--kv-cache-memory), half of what the
machine has available, and what max_num_seqs sequences of max_model_len tokens need plus a quarter
for cached prefixes. What must fit beside it (weights, intermediates, buffers) is taken off first.
Torch-free: the same arithmetic plans for a machine that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.engine.kv_spec import KVCacheSpec
from server.errors import StartupError
from server.memory.layout import (
    Layout,
    MemoryKind,
    RunnerConfig,
    build_layout,
    kv_cache_spec,
    max_context,
)
from server.memory.plan_request import PlanRequest as PlanRequest
from server.memory.suggestions import Change, smallest_changes
from server.option_values import format_size
from weights.formats import FORMATS, get_format, tensor_bytes
from weights.inventory import QUANTISABLE, inventory, num_parameters
from weights.spec import ModelSpec

PREFIX_SHARE = 1.25  # room for cached prefixes beside the live sequences
LOGIT_ELEMENTS = 2**21  # rows x vocabulary of logits to hold at once, but a row a sequence
MAX_LOGIT_ROWS = 256  # likewise
MAX_LOGPROBS = 20
SMALL_MODEL_BYTES = 2**30  # in float32; --dtype auto widens what takes no more
_PLANNED = (
    MemoryKind.WEIGHTS,
    MemoryKind.KV_CACHE,
    MemoryKind.ACTIVATIONS,
    MemoryKind.IO,
    MemoryKind.WORKSPACE,
)


class DoesNotFit(StartupError):
    """A model that a device cannot hold as asked.

    ``kind`` is the component that broke the budget and ``nbytes`` what it takes or needs; ``over``
    is what is missing in all, in bytes. ``kv_needed_bytes`` is what the KV cache would have to be
    given, 0 where it is not the cache that lacks; ``max_model_len`` the length planned for.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: MemoryKind,
        nbytes: int,
        over: int,
        max_model_len: int,
        kv_needed_bytes: int = 0,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.nbytes = nbytes
        self.over = over
        self.max_model_len = max_model_len
        self.kv_needed_bytes = kv_needed_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The sizes to build with, and the bytes that each kind will take."""

    request: PlanRequest
    layout: Layout
    kv: KVCacheSpec
    available_bytes: int
    pool_limit: str  # which of the three bounds set the pool's size
    model_max_len: int  # what the model itself can take

    @property
    def runner(self) -> RunnerConfig:
        return self.layout.config

    @property
    def max_model_len(self) -> int:
        return self.runner.max_model_len

    @property
    def capacity_tokens(self) -> int:
        return self.kv.num_blocks * self.runner.block_size

    @property
    def concurrent_sequences(self) -> float:
        """Sequences of max_model_len tokens that the pool holds at once."""
        blocks = math.ceil(self.max_model_len / self.runner.block_size)
        return self.kv.num_blocks / blocks

    @property
    def kinds(self) -> dict[str, int]:
        """Planned bytes of the kinds that a plan can know."""
        return {str(kind): self.layout.bytes(kind) for kind in _planned_kinds(self.request)}


def plan_memory(model: ModelSpec, request: PlanRequest, available_bytes: int) -> MemoryPlan:
    """Sizes everything for ``model`` on a machine with ``available_bytes`` to give.

    Raises:
        StartupError: it does not fit; names what broke the budget, by how much, and what would fit.
    """
    try:
        return size_memory(model, request, available_bytes)
    except DoesNotFit as refusal:
        changes = changes_that_fit(model, request, available_bytes, refusal)
        if not changes:
            raise
        what = " or ".join(change.option for change in changes)
        raise StartupError(f"{refusal}; what would fit: {what}") from None


def changes_that_fit(
    model: ModelSpec,
    request: PlanRequest,
    available_bytes: int,
    refusal: DoesNotFit,
    more: Iterable[Change] = (),
) -> tuple[Change, ...]:
    """The two smallest changes to what was refused; see server.memory.suggestions."""

    def fits(changed: PlanRequest, available: int) -> bool:
        try:
            size_memory(model, changed, available)
        except StartupError:
            return False
        return True

    return smallest_changes(
        request,
        available_bytes,
        fits,
        max_model_len=refusal.max_model_len,
        kv_needed_bytes=refusal.kv_needed_bytes,
        more=more,
    )


def size_memory(model: ModelSpec, request: PlanRequest, available_bytes: int) -> MemoryPlan:
    """``plan_memory`` without the search for changes that would fit.

    Raises:
        DoesNotFit: names what broke the budget, and by how much.
        StartupError: a length that the model has no positions for.
    """
    if request.max_model_len is not None and request.max_model_len > max_context(model):
        raise StartupError(
            f"--max-model-len {request.max_model_len} exceeds the model's "
            f"{max_context(model)} positions"
        )
    wanted_len = request.max_model_len or model.max_positions
    kv_bytes, limit = _pool_bytes(model, request, wanted_len, available_bytes)
    block_bytes = kv_cache_spec(model, request.format, request.block_size, 1).page_bytes
    num_blocks = kv_bytes // block_bytes
    capacity = num_blocks * request.block_size
    if request.max_model_len is None and 0 < capacity < wanted_len:
        wanted_len = capacity
    blocks_of_one = math.ceil(wanted_len / request.block_size)
    if num_blocks < max(1, blocks_of_one):
        _refuse_pool(kv_bytes, blocks_of_one * block_bytes, wanted_len, limit)
    config = _runner_config(model, request, wanted_len, num_blocks)
    return MemoryPlan(
        request=request,
        layout=build_layout(model, config),
        kv=kv_cache_spec(model, request.format, request.block_size, num_blocks),
        available_bytes=available_bytes,
        pool_limit=limit,
        model_max_len=model.max_positions,
    )


def _planned_kinds(request: PlanRequest) -> tuple[MemoryKind, ...]:
    return (*_PLANNED, MemoryKind.GRAPHS) if request.on_gpu else _PLANNED


def resolve_format(
    dtype: str, checkpoint_format: str, model: ModelSpec, *, on_gpu: bool = False
) -> str:
    """The canonical format for --dtype.

    On a GPU auto is the checkpoint's own where that has 16 bits, else bf16. On a CPU auto is the
    checkpoint's own, but float32 for a small model: there a CPU is no slower for it, and only in
    float32 is an answer independent of what shares its batch.
    """
    if dtype != "auto":
        return next(fmt.name for fmt in FORMATS.values() if fmt.torch_name == dtype)
    if on_gpu:
        return checkpoint_format if tensor_bytes((1,), checkpoint_format) == 2 else "bf16"
    in_float32 = sum(tensor_bytes(parameter.shape, "f32") for parameter in inventory(model))
    return "f32" if in_float32 <= SMALL_MODEL_BYTES else checkpoint_format


def formulas(plan: MemoryPlan) -> dict[str, str]:
    """How each planned kind comes about, with the numbers put in."""
    model, config = plan.layout.model, plan.runner
    width = get_format(config.format).bytes_per_element
    phase = plan.layout.peak_phase
    tied = ", tied unembedding counted once" if model.tied_unembedding else ""
    return {
        "weights": f"{_weights_formula(model, config)}{tied}",
        "kv_cache": (
            f"{plan.kv.num_blocks} blocks x {config.block_size} tokens x {model.num_layers} layers "
            f"x 2 (K, V) x {model.attention.num_kv_heads} heads x {model.attention.head_dim} "
            f"x {width} B"
        ),
        "activations": f"largest phase of the largest step, {phase.name}: "
        + " + ".join(f"{name} {nbytes}" for name, nbytes in phase.tensors)
        + f" B, at {config.max_num_batched_tokens} tokens",
        "io": " + ".join(
            f"{buffer.name} {list(buffer.shape)} {buffer.format}"
            for buffer in plan.layout.buffers
            if buffer.kind is MemoryKind.IO
        ),
        "graphs": (
            f"captured decode steps share one pool: {plan.layout.graph_bytes} B"
            if config.on_gpu
            else "none: this device captures no graphs"
        ),
        "workspace": " + ".join(
            f"{buffer.name} {buffer.nbytes} B"
            for buffer in plan.layout.buffers
            if buffer.kind is MemoryKind.WORKSPACE
        ),
        "allocator_slack": "resident pages of malloc's arena - bytes in use in it (mallinfo2)",
        "runtime": "resident pages of loaded code, now + what the process had written before "
        "it loaded the model",
        "other_processes": "total - free - resident set of the engine process",
        "unaccounted": "resident set - all other kinds that lie in it",
        "free": "MemAvailable, or what the cgroup's limit leaves",
    }


def _weights_formula(model: ModelSpec, config: RunnerConfig) -> str:
    width = get_format(config.format).bytes_per_element
    if config.quantization is None:
        return f"{num_parameters(model)} parameters x {width} B ({config.format})"
    matrices = [p for p in inventory(model) if p.component in QUANTISABLE]
    elements = sum(parameter.num_elements for parameter in matrices)
    nbytes = sum(p.num_bytes(config.format, config.quantization) for p in matrices)
    return (
        f"{elements} parameters of layers' matrices in {config.quantization} with their scales "
        f"({nbytes} B) + {num_parameters(model) - elements} others x {width} B ({config.format})"
    )


def _runner_config(
    model: ModelSpec, request: PlanRequest, max_model_len: int, num_blocks: int
) -> RunnerConfig:
    # A step may lack rows for scoring prompts, which are cut, but never for its sequences' tokens:
    # those that are last in rank would wait until others end.
    to_score = min(MAX_LOGIT_ROWS, LOGIT_ELEMENTS // model.vocab_size)
    logit_rows = max(request.max_num_seqs, to_score)
    return RunnerConfig(
        format=request.format,
        block_size=request.block_size,
        num_blocks=num_blocks,
        max_num_seqs=request.max_num_seqs,
        max_num_batched_tokens=request.max_num_batched_tokens,
        max_model_len=max_model_len,
        max_logit_rows=min(logit_rows, request.max_num_batched_tokens),
        max_logprobs=min(MAX_LOGPROBS, model.vocab_size - 1),
        quantization=request.quantization,
        on_gpu=request.on_gpu,
        batch_invariant=request.batch_invariant,
    )


def _pool_bytes(
    model: ModelSpec, request: PlanRequest, max_model_len: int, available_bytes: int
) -> tuple[int, str]:
    """(bytes for the KV pool, which bound set them). Refuses when the rest alone does not fit."""
    rest = build_layout(model, _runner_config(model, request, max_model_len, 1))
    beside: dict[MemoryKind, int] = {
        kind: rest.bytes(kind)
        for kind in _planned_kinds(request)
        if kind is not MemoryKind.KV_CACHE
    }
    _refuse_beside(beside, available_bytes, max_model_len)
    block = kv_cache_spec(model, request.format, request.block_size, 1).page_bytes
    blocks_of_one = math.ceil(max_model_len / request.block_size)
    useful = math.ceil(request.max_num_seqs * blocks_of_one * PREFIX_SHARE) * block
    bounds = {"what the weights and buffers leave": available_bytes - sum(beside.values())}
    if not request.on_gpu:
        bounds = {
            "max-num-seqs x max-model-len x 1.25": useful,
            "half of the available memory": available_bytes // 2,
            **bounds,
        }
    if request.kv_cache_bytes is not None:
        bounds = {"--kv-cache-memory": request.kv_cache_bytes, **bounds}
    limit = min(bounds, key=lambda name: bounds[name])
    return bounds[limit], limit


def _refuse_beside(
    beside: Mapping[MemoryKind, int], available_bytes: int, max_model_len: int
) -> None:
    over = sum(beside.values()) - available_bytes
    if over < 0:
        return
    largest = max(beside, key=lambda kind: beside[kind])
    raise DoesNotFit(
        f"the model does not fit: {largest} take {format_size(beside[largest])} of "
        f"{format_size(available_bytes)} available, {format_size(over)} too much in all",
        kind=largest,
        nbytes=beside[largest],
        over=over,
        max_model_len=max_model_len,
    )


def _refuse_pool(kv_bytes: int, needed: int, max_model_len: int, limit: str) -> None:
    raise DoesNotFit(
        f"the KV cache has {format_size(kv_bytes)} (by {limit}), "
        f"{format_size(needed - kv_bytes)} too little for one sequence of max-model-len",
        kind=MemoryKind.KV_CACHE,
        nbytes=needed,
        over=needed - kv_bytes,
        max_model_len=max_model_len,
        kv_needed_bytes=needed,
    )

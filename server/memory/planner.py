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

from server.engine.kv_spec import KVCacheSpec
from server.errors import StartupError
from server.memory.layout import (
    MemoryKind,
    RunnerConfig,
    build_layout,
    kv_cache_spec,
    max_context,
)
from server.memory.memory_plan import DoesNotFit as DoesNotFit
from server.memory.memory_plan import MemoryPlan as MemoryPlan
from server.memory.memory_plan import planned_kinds
from server.memory.plan_request import PlanRequest as PlanRequest
from server.memory.suggestions import Change, largest_that, smallest_changes
from server.option_values import format_size
from weights.formats import FORMATS, tensor_bytes
from weights.inventory import num_parameters
from weights.ranks import rank_spec
from weights.spec import ModelSpec

PREFIX_SHARE = 1.25  # room for cached prefixes beside the live sequences
LOGIT_ELEMENTS = 2**21  # rows x vocabulary of logits to hold at once, but a row a sequence
MAX_LOGIT_ROWS = 256  # likewise
MAX_LOGPROBS = 20
SMALL_MODEL_BYTES = 2**30  # in float32; --dtype auto widens what takes no more


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
    more: Iterable[Iterable[Change]] = (),
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
    one_block = kv_of(model, request, 1)
    num_blocks, longest = kv_bytes // one_block.page_bytes, wanted_len
    while num_blocks > 0:
        if request.max_model_len is None:
            wanted_len = _longest(one_block, num_blocks, longest)
        config = _runner_config(model, request, wanted_len, num_blocks)
        layout = build_layout(model, config)
        # What a step holds depends on the pool and on the length: both may still be too large.
        over = sum(map(layout.bytes, planned_kinds(request))) - available_bytes
        if over <= 0:
            break
        num_blocks = max(0, num_blocks - math.ceil(over / one_block.page_bytes))
        kv_bytes = num_blocks * one_block.page_bytes
    needed = one_block.blocks_of(wanted_len)
    if num_blocks < needed:
        _refuse_pool(kv_bytes, needed * one_block.page_bytes, wanted_len, limit)
    return MemoryPlan(
        request=request,
        layout=layout,
        kv=kv_of(model, request, num_blocks),
        available_bytes=available_bytes,
        pool_limit=limit,
        model_max_len=model.max_positions,
    )


def kv_of(model: ModelSpec, request: PlanRequest, num_blocks: int) -> KVCacheSpec:
    """The pool of one rank."""
    part = rank_spec(model, request.ranks)
    format = request.kv_format or request.format
    return kv_cache_spec(part, format, request.block_size, num_blocks)


def _longest(kv: KVCacheSpec, num_blocks: int, wanted_len: int) -> int:
    """The longest sequence of whole blocks that the pool holds, ``wanted_len`` at most."""
    if kv.blocks_of(wanted_len) <= num_blocks:
        return wanted_len
    step = kv.groups[0].block_size
    longest = largest_that(lambda n: kv.blocks_of(n) <= num_blocks, step, wanted_len, step)
    return longest or wanted_len


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
    in_float32 = num_parameters(model) * tensor_bytes((1,), "f32")
    return "f32" if in_float32 <= SMALL_MODEL_BYTES else checkpoint_format


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
        kv_cache_format=request.kv_format,
        ranks=request.ranks,
    )


def _pool_bytes(
    model: ModelSpec, request: PlanRequest, max_model_len: int, available_bytes: int
) -> tuple[int, str]:
    """(bytes for the KV pool, which bound set them). Refuses when the rest alone does not fit."""
    rest = build_layout(model, _runner_config(model, request, max_model_len, 1))
    beside: dict[MemoryKind, int] = {
        kind: rest.bytes(kind) for kind in planned_kinds(request) if kind is not MemoryKind.KV_CACHE
    }
    _refuse_beside(beside, available_bytes, max_model_len)
    kv = kv_of(model, request, 1)
    blocks = math.ceil(request.max_num_seqs * kv.blocks_of(max_model_len) * PREFIX_SHARE)
    useful = blocks * kv.page_bytes
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

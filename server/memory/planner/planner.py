"""Plans a server's memory before anything is loaded: sizes of the KV pool, and the split.

What must fit beside the pool (weights, intermediates, buffers) is taken off first. The pool takes
the budget that was given (--kv-cache-memory), which is refused where there is less. Without one it
takes all that is left on a GPU; on a CPU, whose memory is everybody's, the least of what is left,
half of what the machine has available, and what max_num_seqs sequences of max_model_len tokens
need plus a quarter for cached prefixes.
Torch-free: the same arithmetic plans for a machine that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from server.config.options import MAX_MODEL_LEN
from server.engine.kv_spec import KVCacheSpec
from server.errors import StartupError
from server.memory.backends.record import Backend
from server.memory.backends.registry import backend_named
from server.memory.kinds import MemoryKind
from server.memory.kv_groups import kv_cache_spec
from server.memory.layout import build_layout, max_context
from server.memory.planner.plan import DoesNotFit, MemoryPlan, planned_kinds
from server.memory.planner.request import PlanRequest
from server.memory.planner.suggestions import (
    Change,
    Larger,
    largest_that,
    more_memory,
    smallest_changes,
)
from server.memory.runner_buffers import MOST_ROW_WORDS, row_words
from server.memory.runner_config import RunnerConfig
from server.units import format_size
from weights.formats import FORMATS
from weights.spec import ModelSpec
from weights.tensor_parallel import rank_spec

PREFIX_SHARE = 1.25  # room for cached prefixes beside the live sequences
LOGIT_ELEMENTS = 2**21  # rows x vocabulary of logits to hold at once, but a row a sequence
MAX_LOGIT_ROWS = 256  # likewise
MAX_LOGPROBS = 20


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
    larger: Larger = more_memory,
) -> tuple[Change, ...]:
    """The two smallest changes to what was refused; see server.memory.planner.suggestions."""

    def fits(changed: PlanRequest, available: int) -> bool:
        if changed.max_model_len is None:  # of auto's lengths the shortest fits first
            shortest = min(changed.block_size, model.max_positions)
            changed = replace(changed, max_model_len=shortest, whole_load=False)
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
        kv_fitting_bytes=refusal.kv_fitting_bytes,
        more=more,
        larger=larger,
    )


def size_memory(model: ModelSpec, request: PlanRequest, available_bytes: int) -> MemoryPlan:
    """``plan_memory`` without the search for changes that would fit.

    Raises:
        DoesNotFit: names what broke the budget, and by how much.
        StartupError: a length that the model has no positions for.
    """
    length, most = request.max_model_len, max_context(model)
    if length is not None:
        if length > most:
            raise StartupError(f"--max-model-len {length} exceeds the model's {most} positions")
        return _sized(model, request, length, available_bytes)
    if model.max_positions > MAX_MODEL_LEN:
        # auto would fill half of the machine with the cache of a context that cannot be meant
        raise StartupError(
            f"the model's configuration states {model.max_positions} positions, and --max-model-len"
            f" auto takes at most {MAX_MODEL_LEN}: give the length to serve, --max-model-len TOKENS"
        )
    try:
        return _sized(model, request, model.max_positions, available_bytes)
    except DoesNotFit:
        longest = _longest(model, request, available_bytes)
        if longest is None:
            raise
    return _sized(model, request, longest, available_bytes)


def _longest(model: ModelSpec, request: PlanRequest, available_bytes: int) -> int | None:
    """The longest max_model_len of whole blocks that fits; None where not even one block does."""

    def fits(length: int) -> bool:
        try:
            _sized(model, request, length, available_bytes)
        except DoesNotFit:
            return False
        return True

    block = request.block_size
    return largest_that(fits, block, model.max_positions, block)


def _sized(
    model: ModelSpec, request: PlanRequest, max_model_len: int, available_bytes: int
) -> MemoryPlan:
    """The plan for one length. Raises DoesNotFit."""
    kv_bytes, limit = _pool_bytes(model, request, max_model_len, available_bytes)
    one_block = kv_of(model, request, 1)
    num_blocks = kv_bytes // one_block.page_bytes
    needed = request.least_sequences * one_block.blocks_of(max_model_len)
    if num_blocks < needed:
        needed_bytes = needed * one_block.page_bytes
        raise _pool_too_small(kv_bytes, needed_bytes, request, max_model_len, limit)
    layout = build_layout(model, _runner_config(model, request, max_model_len, num_blocks))
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


def resolve_format(dtype: str, checkpoint_format: str, model: ModelSpec, backend: Backend) -> str:
    """The canonical format for --dtype; auto is the backend's choice."""
    if dtype != "auto":
        return next(fmt.name for fmt in FORMATS.values() if fmt.torch_name == dtype)
    return backend.auto_format(model, checkpoint_format)


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
        backend=request.backend,
        batch_invariant=request.batch_invariant,
        kv_cache_format=request.kv_format,
        ranks=request.ranks,
    )


def _pool_bytes(
    model: ModelSpec, request: PlanRequest, max_model_len: int, available_bytes: int
) -> tuple[int, str]:
    """(bytes for the KV pool, what set them).

    Raises DoesNotFit where the rest alone does not fit, or leaves less than was asked for the pool.
    """
    rest = build_layout(model, _runner_config(model, request, max_model_len, 1))
    beside: dict[MemoryKind, int] = {
        kind: rest.bytes(kind) for kind in planned_kinds(request) if kind is not MemoryKind.KV_CACHE
    }
    _refuse_rows(model, rest.config)
    _refuse_beside(beside, available_bytes, max_model_len)
    kv = kv_of(model, request, 1)
    blocks = math.ceil(request.max_num_seqs * kv.blocks_of(max_model_len) * PREFIX_SHARE)
    useful = blocks * kv.page_bytes
    left = available_bytes - sum(beside.values())
    asked = request.kv_cache_bytes
    if asked is not None:
        if asked > left:
            raise _pool_too_large(asked, asked - left, available_bytes, max_model_len)
        return asked, "--kv-cache-memory"
    bounds = {"what the weights and buffers leave": left}
    if not backend_named(request.backend).own_memory:  # what the cache takes others lack
        bounds = {
            "max-num-seqs x max-model-len x 1.25": useful,
            "half of the available memory": available_bytes // 2,
            **bounds,
        }
    limit = min(bounds, key=lambda name: bounds[name])
    return bounds[limit], limit


def _refuse_rows(model: ModelSpec, config: RunnerConfig) -> None:
    """Rows may be numbered word by word, however much memory there is."""
    words, place = row_words(model, config), backend_named(config.backend).place
    if words > MOST_ROW_WORDS:
        raise DoesNotFit(
            f"{config.max_num_seqs} sequences of {config.max_model_len} tokens take {words} words "
            f"of rows on {place}, which numbers at most {MOST_ROW_WORDS}",
            kind=MemoryKind.IO,
            nbytes=4 * words,
            over=4 * (words - MOST_ROW_WORDS),
            max_model_len=config.max_model_len,
        )


def _refuse_beside(
    beside: Mapping[MemoryKind, int], available_bytes: int, max_model_len: int
) -> None:
    over = sum(beside.values()) - available_bytes
    if over < 0:
        return
    largest = max(beside, key=lambda kind: beside[kind])
    raise DoesNotFit(
        f"the model does not fit: {largest} take {format_size(beside[largest])} of "
        f"{format_size(available_bytes)} available, {format_size(over)} too much in all before "
        "any KV cache",
        kind=largest,
        nbytes=beside[largest],
        over=over,
        max_model_len=max_model_len,
    )


def _pool_too_small(
    kv_bytes: int, needed: int, request: PlanRequest, max_model_len: int, limit: str
) -> DoesNotFit:
    count = request.least_sequences
    load = "one sequence" if count == 1 else f"{count} sequences at once, each"
    return DoesNotFit(
        f"the KV cache has {format_size(kv_bytes)} (by {limit}), "
        f"{format_size(needed - kv_bytes)} too little for {load} of {max_model_len} tokens",
        kind=MemoryKind.KV_CACHE,
        nbytes=needed,
        over=needed - kv_bytes,
        max_model_len=max_model_len,
        kv_needed_bytes=needed,
    )


def _pool_too_large(asked: int, over: int, available_bytes: int, max_model_len: int) -> DoesNotFit:
    left = max(0, asked - over)
    return DoesNotFit(
        f"--kv-cache-memory asks for {format_size(asked)}, and weights and buffers leave "
        f"{format_size(left)} of {format_size(available_bytes)} available: {format_size(over)} "
        "too much",
        kind=MemoryKind.KV_CACHE,
        nbytes=asked,
        over=over,
        max_model_len=max_model_len,
        kv_fitting_bytes=left,
    )

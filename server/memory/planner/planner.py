"""Plans a server's memory before anything is loaded: sizes of the KV pool, and the split.

What must fit beside the pool (weights, intermediates, buffers) is taken off first. The pool takes
the budget that was given (--kv-cache-memory), which is refused where there is less. Without one it
takes all that is left on a GPU; on a CPU, whose memory is everybody's, the least of what is left,
half of what the machine has available, and what max_num_seqs sequences of USUAL_TOKENS need plus a
quarter for cached prefixes, but room for one of max_model_len. Where both were given, so many
sequences of that length are what was asked for.
Torch-free: the same arithmetic plans for a machine that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

from server.engine.engine_config import EngineConfig
from server.engine.kv_spec import KVCacheSpec
from server.errors import StartupError
from server.memory.backends.registry import backend_named
from server.memory.engine_args import MAX_MODEL_LEN, USUAL_TOKENS, EngineArgs
from server.memory.kinds import MemoryKind
from server.memory.kv_groups import kv_cache_spec
from server.memory.layout import build_layout, max_context
from server.memory.planner.plan import DoesNotFit, MemoryPlan, planned_kinds
from server.memory.planner.resolve_args import resolve_engine
from server.memory.planner.suggestions import (
    Change,
    Larger,
    largest_that,
    more_memory,
    smallest_changes,
)
from server.memory.runner_buffers import MOST_ROW_WORDS, row_words
from server.units import format_size
from weights.spec import ModelSpec
from weights.tensor_parallel import rank_spec

BesideThePool = Callable[[ModelSpec, EngineConfig], Mapping[MemoryKind, int]]

PREFIX_SHARE = 1.25  # room for cached prefixes beside the live sequences
_CONFIGS = 64  # whose bytes a search for what fits remembers


def plan_memory(model: ModelSpec, args: EngineArgs, available_bytes: int) -> MemoryPlan:
    """Sizes everything for ``model`` on a machine with ``available_bytes`` to give.

    Raises:
        StartupError: it does not fit; names what broke the budget, by how much, and what would fit.
    """
    try:
        return size_memory(model, args, available_bytes)
    except DoesNotFit as refusal:
        changes = changes_that_fit(model, args, available_bytes, refusal)
        if not changes:
            raise
        what = " or ".join(change.option for change in changes)
        raise StartupError(f"{refusal}; what would fit: {what}") from None


def changes_that_fit(
    model: ModelSpec,
    args: EngineArgs,
    available_bytes: int,
    refusal: DoesNotFit,
    more: Iterable[Iterable[Change]] = (),
    larger: Larger = more_memory,
) -> tuple[Change, ...]:
    """The two smallest changes to what was refused; see server.memory.planner.suggestions."""
    # To look for the least memory is to ask for the same sizes again.
    beside = lru_cache(maxsize=_CONFIGS)(_beside_the_pool)

    def fits(changed: EngineArgs, available: int) -> bool:
        length = changed.max_model_len
        if length is None:  # of auto's lengths the shortest fits first
            block_size = refusal.config.cache.block_size
            length = min(changed.block_size or block_size, model.max_positions)
            changed = replace(changed, max_model_len=length, whole_load=False)
        try:
            _check_length(model, length)
            _split(model, changed, length, available, beside)
        except StartupError:
            return False
        return True

    return smallest_changes(
        args,
        available_bytes,
        fits,
        now=refusal.config,
        kv_needed_bytes=refusal.kv_needed_bytes,
        kv_fitting_bytes=refusal.kv_fitting_bytes,
        more=more,
        larger=larger,
    )


def size_memory(model: ModelSpec, args: EngineArgs, available_bytes: int) -> MemoryPlan:
    """``plan_memory`` without the search for changes that would fit.

    Raises:
        DoesNotFit: names what broke the budget, and by how much.
        StartupError: a length that the model has no positions for.
    """
    length = args.max_model_len
    if length is not None:
        _check_length(model, length)
        return _sized(model, args, length, available_bytes)
    if model.max_positions > MAX_MODEL_LEN:
        # auto would fill half of the machine with the cache of a context that cannot be meant
        raise StartupError(
            f"the model's configuration states {model.max_positions} positions, and --max-model-len"
            f" auto takes at most {MAX_MODEL_LEN}: give the length to serve, --max-model-len TOKENS"
        )
    try:
        return _sized(model, args, model.max_positions, available_bytes)
    except DoesNotFit:
        longest = _longest(model, args, available_bytes)
        if longest is None:
            raise
    return _sized(model, args, longest, available_bytes)


def _check_length(model: ModelSpec, length: int) -> None:
    most = max_context(model)
    if length > most:
        raise StartupError(f"--max-model-len {length} exceeds the model's {most} positions")


def _longest(model: ModelSpec, args: EngineArgs, available_bytes: int) -> int | None:
    """The longest max_model_len of whole blocks that fits; None where not even one block does."""

    def fits(length: int) -> bool:
        try:
            _split(model, args, length, available_bytes)
        except DoesNotFit:
            return False
        return True

    block = resolve_engine(args, model, model.max_positions).cache.block_size
    return largest_that(fits, block, model.max_positions, block)


def _sized(
    model: ModelSpec, args: EngineArgs, max_model_len: int, available_bytes: int
) -> MemoryPlan:
    """The plan for one length. Raises DoesNotFit."""
    config, limit = _split(model, args, max_model_len, available_bytes)
    return MemoryPlan(
        layout=build_layout(model, config),
        kv=kv_of(model, config),
        available_bytes=available_bytes,
        pool_limit=limit,
        model_max_len=model.max_positions,
    )


def _split(
    model: ModelSpec,
    args: EngineArgs,
    max_model_len: int,
    available_bytes: int,
    beside_the_pool: BesideThePool | None = None,
) -> tuple[EngineConfig, str]:
    """(the sizes with the blocks that the pool has room for, what set them). Raises DoesNotFit."""
    config = resolve_engine(args, model, max_model_len)
    beside = (beside_the_pool or _beside_the_pool)(model, config)
    kv_bytes, limit = _pool_bytes(model, args, config, available_bytes, beside)
    one_block = kv_of(model, config)
    num_blocks = kv_bytes // one_block.page_bytes
    needed = blocks_at_once(args.least_sequences, one_block, config)
    if num_blocks < needed:
        raise _pool_too_small(kv_bytes, needed * one_block.page_bytes, args, config, limit)
    return replace(config, cache=replace(config.cache, num_blocks=num_blocks)), limit


def kv_of(model: ModelSpec, config: EngineConfig) -> KVCacheSpec:
    """The pool of one rank."""
    return kv_cache_spec(rank_spec(model, config.model.ranks), config.cache)


def blocks_at_once(sequences: int, kv: KVCacheSpec, config: EngineConfig) -> int:
    """Blocks for so many sequences of max_model_len tokens, and for a step's chunk of one."""
    sizes = config.scheduler
    return kv.blocks_at_once(sequences, sizes.max_model_len, sizes.max_num_batched_tokens)


def _pool_bytes(
    model: ModelSpec,
    args: EngineArgs,
    config: EngineConfig,
    available_bytes: int,
    beside: Mapping[MemoryKind, int],
) -> tuple[int, str]:
    """(bytes for the KV pool, what set them), with all that must fit ``beside`` it.

    Raises DoesNotFit where the rest alone does not fit, or leaves less than was asked for the pool.
    """
    backend = backend_named(config.model.backend)
    _refuse_rows(model, config)
    _refuse_beside(beside, available_bytes, config)
    kv = kv_of(model, config)
    left = available_bytes - sum(beside.values())
    asked = args.kv_cache_memory
    if asked is not None:
        if asked > left:
            raise _pool_too_large(asked, asked - left, available_bytes, config)
        return asked, "--kv-cache-memory"
    bounds = {"what the weights and buffers leave": left}
    if not backend.own_memory:  # what the cache takes others lack
        wanted, useful = _useful_blocks(args, kv, config)
        bounds = {
            wanted: useful * kv.page_bytes,
            "half of the available memory": available_bytes // 2,
            **bounds,
        }
    limit = min(bounds, key=lambda name: bounds[name])
    return bounds[limit], limit


def _useful_blocks(args: EngineArgs, kv: KVCacheSpec, config: EngineConfig) -> tuple[str, int]:
    """(what they are for, blocks that a CPU's pool has use for)."""
    sizes = config.scheduler
    length = sizes.max_model_len
    if args.max_num_seqs is None or args.max_model_len is None:
        length = min(length, USUAL_TOKENS)
    all_at_once = kv.blocks_at_once(sizes.max_num_seqs, length, sizes.max_num_batched_tokens)
    useful, one = math.ceil(all_at_once * PREFIX_SHARE), blocks_at_once(1, kv, config)
    if one > useful:
        return "max-model-len", one
    tokens = "max-model-len" if length == sizes.max_model_len else f"{length} tokens"
    return f"max-num-seqs x {tokens} x 1.25", useful


def _beside_the_pool(model: ModelSpec, config: EngineConfig) -> Mapping[MemoryKind, int]:
    """Bytes of all that a plan lists but the pool, by kind."""
    rest = build_layout(model, config)
    kinds = planned_kinds(backend_named(config.model.backend))
    return {kind: rest.bytes(kind) for kind in kinds if kind is not MemoryKind.KV_CACHE}


def _refuse_rows(model: ModelSpec, config: EngineConfig) -> None:
    """Rows may be numbered word by word, however much memory there is."""
    words, place = row_words(model, config), backend_named(config.model.backend).place
    sizes = config.scheduler
    if words > MOST_ROW_WORDS:
        raise DoesNotFit(
            f"{sizes.max_num_seqs} sequences of {sizes.max_model_len} tokens take {words} words "
            f"of rows on {place}, which numbers at most {MOST_ROW_WORDS}",
            kind=MemoryKind.IO,
            nbytes=4 * words,
            over=4 * (words - MOST_ROW_WORDS),
            config=config,
        )


def _refuse_beside(
    beside: Mapping[MemoryKind, int], available_bytes: int, config: EngineConfig
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
        config=config,
    )


def _pool_too_small(
    kv_bytes: int, needed: int, args: EngineArgs, config: EngineConfig, limit: str
) -> DoesNotFit:
    count = args.least_sequences
    load = "one sequence" if count == 1 else f"{count} sequences at once, each"
    return DoesNotFit(
        f"the KV cache has {format_size(kv_bytes)} (by {limit}), "
        f"{format_size(needed - kv_bytes)} too little for {load} of "
        f"{config.scheduler.max_model_len} tokens",
        kind=MemoryKind.KV_CACHE,
        nbytes=needed,
        over=needed - kv_bytes,
        config=config,
        kv_needed_bytes=needed,
    )


def _pool_too_large(
    asked: int, over: int, available_bytes: int, config: EngineConfig
) -> DoesNotFit:
    left = max(0, asked - over)
    return DoesNotFit(
        f"--kv-cache-memory asks for {format_size(asked)}, and weights and buffers leave "
        f"{format_size(left)} of {format_size(available_bytes)} available: {format_size(over)} "
        "too much",
        kind=MemoryKind.KV_CACHE,
        nbytes=asked,
        over=over,
        config=config,
        kv_fitting_bytes=left,
    )

"""The smallest changes that make a plan fit, each found by planning again with it. No torch.

A change is as large as the ratio of the old value to the new one: a length cut from 8192 to 4096
is as large as a format of half the bytes. The options are tried one at a time; where that does not
give two, narrower numbers together with a shorter length or with other hardware; at last, how much
memory is missing, for all that was asked or for less of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice, takewhile

from server.engine.engine_config import EngineConfig
from server.memory.backends.registry import backend_of
from server.memory.engine_args import EngineArgs
from server.memory.planner.resolve_args import format_of
from server.units import ceil_div, exact_size
from weights.formats import QUANTISED, get_format, get_quantised

Fits = Callable[[EngineArgs, int], bool]  # (asked, available bytes) -> whether a plan is made
Larger = Callable[[int, int], str]  # (available bytes, needed ones) -> what gives them

MOST_CHANGES = 2
_NARROW = "bfloat16"
_MEMORY_STEP = 1 << 20  # more memory is asked for in whole MiB
_MOST_MEMORY = 1 << 50


@dataclass(frozen=True, slots=True)
class Change:
    """``option`` as an operator would write it; ``factor`` is the ratio that it changes by."""

    option: str
    args: EngineArgs
    available_bytes: int
    factor: float


def more_memory(available: int, needed: int) -> str:
    """What is missing, for people: never less than it is."""
    unit, name = (1 << 30, "GiB") if needed - available >= 1 << 30 else (1 << 20, "MiB")
    hundredths = math.ceil(100 * (needed - available) / unit)
    return f"{hundredths / 100:.2f} {name} more memory"


def smallest_changes(
    args: EngineArgs,
    available_bytes: int,
    fits: Fits,
    *,
    now: EngineConfig,
    kv_needed_bytes: int = 0,
    kv_fitting_bytes: int = 0,
    more: Iterable[Iterable[Change]] = (),
    larger: Larger = more_memory,
) -> tuple[Change, ...]:
    """The two smallest changes with which ``fits`` says yes, the smaller one first.

    ``now`` are the sizes that were planned for; ``kv_needed_bytes`` what the KV cache would have to
    be given, 0 where it is not too small; ``kv_fitting_bytes`` what it could be given where
    --kv-cache-memory asks for more, else 0. ``more`` are changes that only the caller can offer,
    such as another device: of each group, smallest first, one is told. ``larger`` says how a
    machine comes by the memory that it lacks.
    """
    elsewhere = [list(group) for group in more]
    groups: list[Iterable[Change]] = [
        *([change] for change in _smaller_sizes(args, available_bytes, fits, now)),
        *_larger_cache(args, available_bytes, kv_needed_bytes),
        *_smaller_cache(args, available_bytes, kv_fitting_bytes),
        *_narrower_formats(args, available_bytes),
        *_narrower_cache(args, available_bytes),
        *elsewhere,
    ]
    changes = _sorted(_first_that_fit(groups, fits))
    if len(changes) < MOST_CHANGES:
        changes = _sorted([*changes, *_two_at_once(args, available_bytes, fits, now)])
    if len(changes) < MOST_CHANGES:
        together = _narrower_elsewhere(args, available_bytes, fits, elsewhere)
        changes = _sorted([*changes, *_first_that_fit(together, fits)])
    if len(changes) < MOST_CHANGES:
        changes += _sorted(_more_memory(args, available_bytes, fits, larger, now))
    if len(changes) < MOST_CHANGES and args.kv_cache_memory is not None:
        # The cache that was asked for holds no sequence at all: nothing fits beside it.
        lifted = _cache_without_limit(args, available_bytes)
        again = smallest_changes(
            lifted.args,
            available_bytes,
            fits,
            now=now,
            more=[[_rebased(args, lifted, change) for change in group] for group in elsewhere],
            larger=larger,
        )
        changes += [replace(c, option=f"{lifted.option} with {c.option}") for c in again]
    return tuple(changes[:MOST_CHANGES])


def _rebased(args: EngineArgs, base: Change, change: Change) -> Change:
    """A change to ``args`` as one to what ``base`` makes of it."""
    return replace(change, args=_both(args, base, change).args)


def _first_that_fit(groups: Iterable[Iterable[Change]], fits: Fits) -> Iterator[Change]:
    for group in groups:
        yield from islice((c for c in group if fits(c.args, c.available_bytes)), 1)


def _sorted(changes: Iterable[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: change.factor)


def _smaller_sizes(
    args: EngineArgs, available: int, fits: Fits, now: EngineConfig
) -> Iterator[Change]:
    """The largest smaller value of each size, where one fits."""
    yield from _shorter(args, available, fits, now)
    seqs, tokens = now.scheduler.max_num_seqs, now.scheduler.max_num_batched_tokens
    yield from _smaller(args, available, fits, "max_num_seqs", seqs, 1, 1)
    yield from _smaller(args, available, fits, "max_num_batched_tokens", tokens, seqs, 1)


def _shorter(args: EngineArgs, available: int, fits: Fits, now: EngineConfig) -> Iterator[Change]:
    block, length = now.cache.block_size, now.scheduler.max_model_len
    return _smaller(args, available, fits, "max_model_len", length, block, block)


def _smaller(
    args: EngineArgs,
    available: int,
    fits: Fits,
    name: str,
    now: int,
    least: int,
    step: int,
) -> Iterator[Change]:
    def change(value: int) -> Change:
        return _sized(args, available, name, now, value)

    value = largest_that(lambda value: fits(change(value).args, available), least, now - 1, step)
    if value is not None:
        yield change(value)


def _sized(args: EngineArgs, available: int, name: str, now: int, value: int) -> Change:
    """With ``value`` instead of ``now`` for the size called ``name``."""
    changed = _resized(args, name, value)
    return Change(f"--{name.replace('_', '-')} {value}", changed, available, now / value)


def _resized(args: EngineArgs, name: str, value: int) -> EngineArgs:
    match name:
        case "max_model_len":
            return replace(args, max_model_len=value)
        case "max_num_seqs":
            return replace(args, max_num_seqs=value)
        case "max_num_batched_tokens":
            return replace(args, max_num_batched_tokens=value)
    raise ValueError(f"{name!r} is not a size of an engine")


def largest_that(holds: Callable[[int], bool], least: int, most: int, step: int = 1) -> int | None:
    """The largest multiple of ``step`` in [least, most] for which ``holds``; None where none does.

    What holds for a value must hold for every smaller one.
    """
    low, high = ceil_div(least, step), most // step
    if high < low or not holds(low * step):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle * step):
            low = middle
        else:
            high = middle - 1
    return low * step


def _larger_cache(args: EngineArgs, available: int, needed: int) -> Iterator[list[Change]]:
    """What is needed, or no limit at all."""
    given = args.kv_cache_memory
    if needed <= (given or 0):
        return
    yield [_cache_of(needed, args, available)]
    if given is not None:
        yield [_cache_without_limit(args, available)]


def _smaller_cache(args: EngineArgs, available: int, fitting: int) -> Iterator[list[Change]]:
    """What there is, in whole units that an option can say, or whatever there is."""
    if args.kv_cache_memory is None or fitting <= 0:
        return
    unit = _MEMORY_STEP if fitting >= _MEMORY_STEP else 1 << 10
    yield [_cache_of(max(unit, fitting // unit * unit), args, available)]
    yield [_cache_without_limit(args, available)]


def _cache_of(nbytes: int, args: EngineArgs, available: int) -> Change:
    changed = replace(args, kv_cache_memory=nbytes)
    given = args.kv_cache_memory or nbytes
    factor = max(nbytes, given) / min(nbytes, given)
    return Change(f"--kv-cache-memory {exact_size(nbytes)}", changed, available, factor)


def _cache_without_limit(args: EngineArgs, available: int) -> Change:
    changed = replace(args, kv_cache_memory=None)
    factor = max(1.0, available / (args.kv_cache_memory or available))
    return Change("--kv-cache-memory auto", changed, available, factor)


def _narrower_formats(args: EngineArgs, available: int) -> Iterator[list[Change]]:
    """By option, the widest of the narrower formats first."""
    if args.quantization is None and get_format(format_of(args.dtype)).bytes_per_element > 2:
        yield [Change(f"--dtype {_NARROW}", replace(args, dtype=_NARROW), available, 2.0)]
    offered = backend_of(args).suggested_quantisations
    if offered:
        bits = _matrix_bits(args)
        narrower = {name: get_quantised(name).bits for name in offered}
        yield [
            Change(
                f"--quantization {name}",
                replace(args, quantization=name),
                available,
                bits / narrow,
            )
            for name, narrow in narrower.items()
            if narrow < bits
        ]


def _narrower_cache(args: EngineArgs, available: int) -> Iterator[list[Change]]:
    """The KV cache in fewer bits than it is in, the most of those first."""
    bits = _bits(args.kv_cache_dtype or format_of(args.dtype))
    narrower = {name: _bits(name) for name in backend_of(args).kv_formats if name in QUANTISED}
    yield [
        Change(
            f"--kv-cache-dtype {name}",
            replace(args, kv_cache_dtype=name),
            available,
            bits / narrow,
        )
        for name, narrow in sorted(narrower.items(), key=lambda pair: -pair[1])
        if narrow < bits
    ]


def _two_at_once(
    args: EngineArgs, available: int, fits: Fits, now: EngineConfig
) -> Iterator[Change]:
    """Narrower numbers and a shorter length together."""
    for group in _narrower_formats(args, available):
        for narrower in group:
            for shorter in _shorter(narrower.args, available, fits, now):
                option = f"{narrower.option} with {shorter.option}"
                factor = narrower.factor * shorter.factor
                yield Change(option, shorter.args, available, factor)


def _narrower_elsewhere(
    args: EngineArgs, available: int, fits: Fits, elsewhere: Iterable[Iterable[Change]]
) -> Iterator[list[Change]]:
    """Narrower numbers and less of what only the caller can offer than it would take alone."""
    for group in elsewhere:
        too_small = list(takewhile(lambda c: not fits(c.args, c.available_bytes), group))
        for narrower in _narrower_formats(args, available):
            for one in narrower:
                yield [_both(args, one, other) for other in too_small]


def _both(args: EngineArgs, one: Change, other: Change) -> Change:
    """``other`` on top of ``one``, both of them changes to ``args``."""
    pairs = ((f.name, getattr(other.args, f.name)) for f in fields(args))
    differing = {name: value for name, value in pairs if value != getattr(args, name)}
    return Change(
        f"{one.option} with {other.option}",
        replace(one.args, **differing),
        other.available_bytes,
        one.factor * other.factor,
    )


def _matrix_bits(args: EngineArgs) -> int:
    return _bits(args.quantization or format_of(args.dtype))


def _bits(format: str) -> int:
    if format in QUANTISED:
        return QUANTISED[format].bits
    return 8 * get_format(format).bytes_per_element


def _more_memory(
    args: EngineArgs, available: int, fits: Fits, larger: Larger, now: EngineConfig
) -> Iterator[Change]:
    """For all that was asked, and for each way to ask less with which less is missing."""
    whole = _least_memory(args, available, fits)
    if whole is not None:
        yield Change(larger(available, whole), args, whole, whole / max(1, available))
    for less in _ways_to_ask_less(args, available, now):
        needed = _least_memory(less.args, available, fits)
        if needed is not None and (whole is None or needed < whole):
            option = f"{less.option} with {larger(available, needed)}"
            factor = less.factor * needed / max(1, available)
            yield Change(option, less.args, needed, factor)


def _ways_to_ask_less(args: EngineArgs, available: int, now: EngineConfig) -> Iterator[Change]:
    """The narrowest numbers that the device offers, half of each size."""
    narrower = [c for group in _narrower_formats(args, available) for c in group]
    if narrower:
        yield max(narrower, key=lambda change: change.factor)
    halves = {
        "max_model_len": (args.max_model_len, 1),
        "max_num_seqs": (now.scheduler.max_num_seqs, 1),
        "max_num_batched_tokens": (
            now.scheduler.max_num_batched_tokens,
            now.scheduler.max_num_seqs,
        ),
    }
    for name, (whole, least) in halves.items():
        if whole is not None and whole > least:
            yield _sized(args, available, name, whole, max(least, whole // 2))


def _least_memory(args: EngineArgs, available: int, fits: Fits) -> int | None:
    """The least memory above ``available`` with which what was asked fits, in steps of a MiB."""
    enough = max(available, _MEMORY_STEP)
    while not fits(args, enough):
        enough *= 2
        if enough > _MOST_MEMORY:
            return None
    missing = largest_that(
        lambda extra: not fits(args, available + extra), 0, enough - available, _MEMORY_STEP
    )
    return available + (0 if missing is None else missing + _MEMORY_STEP)

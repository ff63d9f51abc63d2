"""The smallest changes that make a plan fit, each found by planning again with it. No torch.

A change is as large as the ratio of the old value to the new one: a length cut from 8192 to 4096
is as large as a format of half the bytes. The options are tried one at a time; where that does not
give two, narrower numbers and a shorter length together; at last, how much memory is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from server.memory.plan_request import PlanRequest
from server.option_values import format_size
from weights.formats import FORMATS, get_format, get_quantised

Fits = Callable[[PlanRequest, int], bool]  # (request, available bytes) -> whether a plan is made

MOST_CHANGES = 2
_NARROW = "bf16"
_QUANTISATIONS = ("int8", "int4")
_MEMORY_STEP = 1 << 20  # more memory is asked for in whole MiB
_MOST_MEMORY = 1 << 50


@dataclass(frozen=True, slots=True)
class Change:
    """``option`` as an operator would write it; ``factor`` is the ratio that it changes by."""

    option: str
    request: PlanRequest
    available_bytes: int
    factor: float


def smallest_changes(
    request: PlanRequest,
    available_bytes: int,
    fits: Fits,
    *,
    max_model_len: int,
    kv_needed_bytes: int = 0,
    more: Iterable[Iterable[Change]] = (),
) -> tuple[Change, ...]:
    """The two smallest changes with which ``fits`` says yes, the smaller one first.

    ``max_model_len`` is the length that was planned for, in tokens; ``kv_needed_bytes`` what the
    KV cache would have to be given where --kv-cache-memory limits it. ``more`` are changes that
    only the caller can offer, such as another device: of each group, smallest first, one is told.
    """
    groups: list[Iterable[Change]] = [
        *([change] for change in _smaller_sizes(request, available_bytes, fits, max_model_len)),
        _larger_cache(request, available_bytes, kv_needed_bytes),
        *_narrower_formats(request, available_bytes),
        *more,
    ]
    found = [
        next((c for c in group if fits(c.request, c.available_bytes)), None) for group in groups
    ]
    changes = [change for change in found if change is not None]
    if len(changes) < MOST_CHANGES:
        changes.extend(_two_at_once(request, available_bytes, fits, max_model_len))
    changes = _sorted(changes)
    if len(changes) < MOST_CHANGES:
        changes += _sorted(_more_memory(request, available_bytes, fits, max_model_len))
    return tuple(changes[:MOST_CHANGES])


def _sorted(changes: Iterable[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: change.factor)


def _smaller_sizes(
    request: PlanRequest, available: int, fits: Fits, max_model_len: int
) -> Iterator[Change]:
    """The largest smaller value of each size, where one fits."""
    sizes = (
        ("max_model_len", max_model_len, request.block_size, request.block_size),
        ("max_num_seqs", request.max_num_seqs, 1, 1),
        ("max_num_batched_tokens", request.max_num_batched_tokens, request.max_num_seqs, 1),
    )
    for name, now, least, step in sizes:
        yield from _smaller(request, available, fits, name, now, least, step)


def _shorter(
    request: PlanRequest, available: int, fits: Fits, max_model_len: int
) -> Iterator[Change]:
    block = request.block_size
    return _smaller(request, available, fits, "max_model_len", max_model_len, block, block)


def _smaller(
    request: PlanRequest,
    available: int,
    fits: Fits,
    name: str,
    now: int,
    least: int,
    step: int,
) -> Iterator[Change]:
    def changed(value: int) -> PlanRequest:
        return replace(request, **{name: value})  # type: ignore[arg-type]

    value = largest_that(lambda value: fits(changed(value), available), least, now - 1, step)
    if value is not None:
        option = f"--{name.replace('_', '-')} {value}"
        yield Change(option, changed(value), available, now / value)


def largest_that(holds: Callable[[int], bool], least: int, most: int, step: int = 1) -> int | None:
    """The largest multiple of ``step`` in [least, most] for which ``holds``; None where none does.

    What holds for a value must hold for every smaller one.
    """
    low, high = -(-least // step), most // step
    if high < low or not holds(low * step):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle * step):
            low = middle
        else:
            high = middle - 1
    return low * step


def _larger_cache(request: PlanRequest, available: int, needed: int) -> Iterator[Change]:
    if request.kv_cache_bytes is not None and needed > request.kv_cache_bytes:
        changed = replace(request, kv_cache_bytes=needed)
        factor = needed / request.kv_cache_bytes
        yield Change(f"--kv-cache-memory {needed}", changed, available, factor)


def _narrower_formats(request: PlanRequest, available: int) -> Iterator[list[Change]]:
    """By option, the widest of the narrower formats first."""
    if request.quantization is None and get_format(request.format).bytes_per_element > 2:
        changed = replace(request, format=_NARROW)
        yield [Change(f"--dtype {FORMATS[_NARROW].torch_name}", changed, available, 2.0)]
    if request.on_gpu:
        bits = _matrix_bits(request)
        narrower = {name: get_quantised(name).bits for name in _QUANTISATIONS}
        yield [
            Change(
                f"--quantization {name}",
                replace(request, quantization=name),
                available,
                bits / narrow,
            )
            for name, narrow in narrower.items()
            if narrow < bits
        ]


def _two_at_once(
    request: PlanRequest, available: int, fits: Fits, max_model_len: int
) -> Iterator[Change]:
    """Narrower numbers and a shorter length together."""
    for group in _narrower_formats(request, available):
        for narrower in group:
            for shorter in _shorter(narrower.request, available, fits, max_model_len):
                option = f"{narrower.option} with {shorter.option}"
                factor = narrower.factor * shorter.factor
                yield Change(option, shorter.request, available, factor)


def _matrix_bits(request: PlanRequest) -> int:
    if request.quantization is not None:
        return get_quantised(request.quantization).bits
    return 8 * get_format(request.format).bytes_per_element


def _more_memory(
    request: PlanRequest, available: int, fits: Fits, max_model_len: int
) -> Iterator[Change]:
    """As it is, with the narrowest numbers that the device offers, at half the length."""
    narrower = [c for group in _narrower_formats(request, available) for c in group]
    narrowest = max(narrower, key=lambda change: change.factor, default=None)
    candidates = [(request, "")]
    if narrowest is not None:
        candidates.append((narrowest.request, f"{narrowest.option} and "))
    half = max(1, max_model_len // 2)
    shorter = replace(request, max_model_len=half)
    candidates.append((shorter, f"--max-model-len {half} and "))
    for changed, words in candidates:
        needed = _least_memory(changed, available, fits)
        if needed is not None:
            option = f"{words}{format_size(needed - available)} more memory"
            yield Change(option, changed, needed, needed / max(1, available))


def _least_memory(request: PlanRequest, available: int, fits: Fits) -> int | None:
    """The least memory above ``available`` with which the request fits, in steps of a MiB."""
    enough = max(available, _MEMORY_STEP)
    while not fits(request, enough):
        enough *= 2
        if enough > _MOST_MEMORY:
            return None
    missing = largest_that(
        lambda extra: not fits(request, available + extra), 0, enough - available, _MEMORY_STEP
    )
    return available + (0 if missing is None else missing + _MEMORY_STEP)

"""Looks at every value that is read: one that is not finite, or that the format it is to be held in
cannot hold, is told while loading, by tensor and place.

A NaN among the weights makes NaN of every answer that it touches, and a server that finds it at its
first request has been called ready for nothing.

Values are looked at as whole numbers, since a comparison of those needs no case for NaN: without
its sign a float rises with its bits, the infinities are above every number and NaN above those. Of
the bits as they are, the largest signed number is the largest of the positive floats, and the
largest unsigned one is that of the negative floats, where there are any. So two passes without a
copy tell all, at the speed of memory.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from weights.checkpoint.safetensors_header import TensorEntry
from weights.errors import CheckpointError
from weights.formats import FORMATS, from_safetensors
from weights.strict_json import shown

_PENDING = 4  # pieces that wait to be looked at, before the reader waits itself
_TYPES: dict[int, tuple[type[np.unsignedinteger], type[np.signedinteger]]] = {
    2: (np.uint16, np.int16),
    4: (np.uint32, np.int32),
}
# The bits of the largest number that stays finite in a format, by (the file's, that of the target).
# float32 rounds to infinity in bfloat16 from halfway beyond its largest on. 65504, float16's
# largest, has no bfloat16: 65280 is the last below.
_LARGEST = {
    ("f32", "f32"): 0x7F7F_FFFF,
    ("f32", "bf16"): 0x7F7F_7FFF,
    ("f32", "f16"): 0x477F_E000,
    ("bf16", "f32"): 0x7F7F,
    ("bf16", "bf16"): 0x7F7F,
    ("bf16", "f16"): 0x477F,
    ("f16", "f32"): 0x7BFF,
    ("f16", "bf16"): 0x7BFF,
    ("f16", "f16"): 0x7BFF,
}


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a tensor that were read: from ``offset`` of the file on, whole elements, to be held
    in format ``held``. Nothing writes to ``memory`` while it is looked at."""

    entry: TensorEntry
    offset: int
    memory: memoryview
    held: str


def check(span: Span) -> None:
    """Raises CheckpointError, naming file, tensor and place, where a value is not finite, or not in
    the format that it is to be held in."""
    stored = from_safetensors(span.entry.dtype) or ""
    unsigned, signed = _TYPES[FORMATS[stored].bytes_per_element]
    bits = np.frombuffer(span.memory, dtype=unsigned)
    if not len(bits):
        return
    sign = 1 << (8 * bits.itemsize - 1)
    largest = _LARGEST[stored, span.held]
    negative = int(bits.max()) - sign  # below 0 where there is no negative float
    if negative > largest or int(bits.view(signed).max()) > largest:
        magnitudes = bits & (sign - 1)
        index = int(np.argmax(magnitudes > largest))
        raise _refusal(span, index, int(bits[index]), sign, _LARGEST[stored, stored])


def _refusal(span: Span, index: int, bits: int, sign: int, finite: int) -> CheckpointError:
    entry = span.entry
    where = f"{entry.file}: tensor {shown(entry.name)}"
    magnitude = bits & (sign - 1)
    if magnitude <= finite:
        most = {"f16": "65504", "bf16": "3.38e38"}[span.held]
        return CheckpointError(
            f"{where} has values beyond {most}, which {span.held} cannot hold; serve it as "
            f"{'bf16 or f32' if span.held == 'f16' else 'f32'}"
        )
    word = "NaN" if magnitude > finite + 1 else "-infinity" if bits & sign else "infinity"
    element_bytes = FORMATS[from_safetensors(entry.dtype) or ""].bytes_per_element
    element = (span.offset - entry.offset) // element_bytes + index
    place = [int(part) for part in np.unravel_index(element, entry.shape or (1,))]
    return CheckpointError(
        f"{where} holds {word} at {place}, and so would every answer that it is part of; the file "
        "is damaged, or training diverged: fetch or export it again"
    )


class Checker:
    """Looks at spans in a thread of its own, beside the one that reads; a few behind it at most.

    The pieces are hot in the cache when they are looked at, and neither thread holds Python's lock.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="finite")
        self._pending: deque[Future[None]] = deque()

    def submit(self, span: Span) -> None:
        """Raises what an earlier span was refused for."""
        self._pending.append(self._thread.submit(check, span))
        if len(self._pending) > _PENDING:
            self._pending.popleft().result()

    def settle(self) -> None:
        """Waits until every span was looked at. Raises CheckpointError for the first refused."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Forgets what waits still."""
        self._pending.clear()
        self._thread.shutdown(cancel_futures=True)

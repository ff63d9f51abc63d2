"""What memory is for, and a buffer of it. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from weights.formats import FORMATS

ELEMENT_BYTES = {
    **{name: fmt.bytes_per_element for name, fmt in FORMATS.items()},
    **{"i64": 8, "i32": 4, "bool": 1, "u8": 1, "int8": 1, "fp8": 1},
}


class MemoryKind(StrEnum):
    """What memory is for. On every device the bytes of all kinds add up to its total."""

    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"
    ACTIVATIONS = "activations"
    IO = "io"
    GRAPHS = "graphs"
    WORKSPACE = "workspace"
    ALLOCATOR_SLACK = "allocator_slack"
    RUNTIME = "runtime"
    OTHER_PROCESSES = "other_processes"
    UNACCOUNTED = "unaccounted"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor that lives as long as the runner. ``format`` is a key of ELEMENT_BYTES."""

    name: str
    shape: tuple[int, ...]
    format: str
    kind: MemoryKind

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ELEMENT_BYTES[self.format]


Shapes = tuple[tuple[str, tuple[int, ...], str], ...]  # name, shape, format


def io_buffers(shapes: Shapes) -> tuple[Buffer, ...]:
    """What carries a step's inputs and outputs, and what rows keep between steps."""
    return tuple(Buffer(name, shape, fmt, MemoryKind.IO) for name, shape, fmt in shapes)

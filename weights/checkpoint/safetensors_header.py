"""One safetensors file's header, checked whole before any tensor is read.

    | 8 bytes: N, little-endian | N bytes: JSON header | tensors, back to back |
                                                       ^ offset 0 of data_offsets

Tensors must tile the data: no gap, no overlap, nothing before, nothing after.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from weights.checkpoint.limits import MAX_HEADER_VALUES, DescriptionBudget
from weights.errors import CheckpointError
from weights.formats import SAFETENSORS_BYTES
from weights.strict_json import parse_object, shown

_MAX_RANK = 16
_MAX_DIM = 1 << 48
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies. ``file`` is its name in the folder, ``offset`` counts from the file's
    first byte, ``dtype`` is safetensors' own word."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(
    path: Path, file: str, budget: DescriptionBudget | None = None
) -> tuple[TensorEntry, ...]:
    """Every tensor of the file at ``path``, by rising offset.

    ``budget`` is what the checkpoint's headers may still take; one of its own, where none is given.
    Raises CheckpointError naming ``file`` and, where there is one, the tensor.
    """
    budget = budget or DescriptionBudget()
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        _check_length(length, size, file)
        budget.take_header(length, file)
        data = stream.read(length)
    if len(data) != length:
        raise CheckpointError(f"{file}: the header ends early")
    if not data.startswith(b"{"):
        raise CheckpointError(f"{file}: the header is not valid JSON: it must begin with {{")
    budget.take_tensors(data.count(b'"data_offsets"'), file)  # before anything is built of them
    header = parse_object(data, f"{file}: the header", MAX_HEADER_VALUES)
    _check_metadata(header.pop("__metadata__", None), file)
    start = _LENGTH_BYTES + length
    entries = [_entry(name, value, file, start, size) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    _check_tiling(entries, start, size, file)
    return tuple(entries)


def _check_length(length: int, size: int, file: str) -> None:
    if size < _LENGTH_BYTES:
        raise CheckpointError(f"{file}: {size} bytes are too few for a safetensors file")
    if length > size - _LENGTH_BYTES:
        raise CheckpointError(
            f"{file}: the header length is {length} bytes but the file has {size}; it is cut off "
            "or no safetensors file"
        )


def _check_metadata(metadata: Any, file: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{file}: __metadata__ must be an object of strings")


class _Fault(ValueError):
    """What is wrong with one tensor; read_header's caller is told file and name before it."""


def _entry(name: str, value: Any, file: str, start: int, size: int) -> TensorEntry:
    try:
        return _described(name, value, file, start, size)
    except _Fault as fault:
        raise CheckpointError(f"{file}: tensor {shown(name)}{fault}") from None


def _described(name: str, value: Any, file: str, start: int, size: int) -> TensorEntry:
    if not isinstance(value, dict):
        raise _Fault(" must be described by an object")
    dtype = value.get("dtype")
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_BYTES:
        raise _Fault(f" has the unknown dtype {shown(dtype)}")
    shape = _shape(value.get("shape"))
    begin, end = _offsets(value.get("data_offsets"))
    if start + end > size:
        raise _Fault(f" ends at byte {start + end} but the file has {size} bytes; it is cut off")
    expected = prod(shape) * SAFETENSORS_BYTES[dtype]
    if end - begin != expected:
        raise _Fault(
            f": {dtype} of shape {list(shape)} takes {expected} bytes, "
            f"but data_offsets span {end - begin}"
        )
    return TensorEntry(name, file, dtype, shape, start + begin, end - begin)


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MAX_RANK:
        raise _Fault(f": shape must be a list of at most {_MAX_RANK} sizes")
    for size in value:
        if not _is_int(size) or not 0 <= size <= _MAX_DIM:
            raise _Fault(f": shape has the size {shown(size)}")
    return tuple(value)


def _offsets(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_int, value)):
        raise _Fault(": data_offsets must be two whole numbers")
    begin, end = value
    if not 0 <= begin <= end < 1 << 62:
        raise _Fault(f": data_offsets [{shown(begin)}, {shown(end)}] are not a range")
    return begin, end


def _check_tiling(entries: Iterable[TensorEntry], start: int, size: int, file: str) -> None:
    """``entries`` by rising offset. Empty tensors may lie anywhere on a seam."""
    first = TensorEntry("(the header)", file, "U8", (), start, 0)
    last = TensorEntry("(the end of the file)", file, "U8", (), size, 0)
    for before, after in pairwise([first, *entries, last]):
        end = before.offset + before.nbytes
        if after.offset < end:
            raise CheckpointError(
                f"{file}: tensors {shown(before.name)} and {shown(after.name)} overlap"
            )
        if after.offset > end:
            raise CheckpointError(
                f"{file}: {after.offset - end} bytes between {shown(before.name)} and "
                f"{shown(after.name)} belong to no tensor"
            )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""The scratch of sampling as tensors: one allocation a call, and one operation a region."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kernels.footprint.gpu_sampling import SamplingScratch

INTEGERS = (
    "tile_id",
    "heads",
    "links",
    "limits",
    "survivor_counts",
    "survivor_keys",
    "survivor_ids",
)
_DTYPES = dict.fromkeys(INTEGERS, torch.int32) | {"totals": torch.int64}
_WORD = torch.int32


class _Place(NamedTuple):
    """A region of the buffer, in elements of its dtype."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int


def regions_of(scratch: SamplingScratch, device: torch.device) -> dict[str, Tensor]:
    """Name -> the region, uninitialised, of the shape that ``scratch`` says."""
    total, places = _places(scratch)
    buffer = torch.empty(total // _WORD.itemsize, dtype=_WORD, device=device)
    typed = {_WORD: buffer, **{dtype: buffer.view(dtype) for dtype in (torch.float32, torch.int64)}}
    return {
        place.name: typed[place.dtype].as_strided(place.shape, place.strides, place.start)
        for place in places
    }


@lru_cache(maxsize=1024)
def _places(scratch: SamplingScratch) -> tuple[int, tuple[_Place, ...]]:
    """The buffer's bytes, and what lies where; a server asks for few different ones, often."""
    offsets, total = scratch.offsets()
    places = []
    for name, shape in scratch.regions().items():
        dtype = _DTYPES.get(name, torch.float32)
        strides = (shape[1], 1) if len(shape) == 2 else (1,)
        places.append(_Place(name, dtype, shape, strides, offsets[name] // dtype.itemsize))
    return total, tuple(places)


def padded_tiles(tiles: int) -> int:
    """What a program that looks at all tiles of a row holds."""
    return max(16, int(triton.next_power_of_2(tiles)))

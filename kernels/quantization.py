"""Weight-only quantised matrices: their numbers, their scales, and how both lie in memory.

The truth of what a format's values are: value = number * scale. All are symmetric and round to the
nearest number; a matrix is [out, in].

int8   numbers -127 .. 127 [out, in] int8; one scale an output channel [out] float32, its largest
       magnitude / 127
fp8    numbers [out, in] float8_e4m3fn (Micikevicius et al. 2022, arXiv 2209.05433); one scale an
       output channel [out] float32, its largest magnitude / 448
int4   numbers -7 .. 7 in groups of 64 or 32 input channels; one bfloat16 scale a group, its largest
       magnitude / 7. Two numbers lie in a byte, each as number + 8, and tile by tile:

       tile t of an output channel:  input channels  [2 g t, 2 g t + g)     [2 g t + g, 2 g (t + 1))
       byte j of its g bytes:                        low nibble: j-th       high nibble: j-th

       numbers [tiles, out, g] uint8, scales [tiles, out, 2]. So the two halves of a loaded tile of
       bytes are two whole groups of consecutive channels: unpacking moves nothing between threads,
       each half has one scale an output channel, both scales are one word of 32 bits, and what
       neighbouring output channels need is neighbours in memory. Input channels are padded with
       zeros to whole tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.checks import FLOATS, check_dtype, check_shape
from kernels.footprint import ceil_div

QUANTISED = ("int8", "int4", "fp8")
INT4_GROUP = 64
INT4_GROUPS = (32, 64)
INT4_OFFSET = 8  # a nibble holds number + 8
LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}

_PANEL_BYTES = 32 << 20  # of a matrix widened to float32 at once


@dataclass(frozen=True, slots=True)
class Quantised:
    """``numbers`` and ``scales`` as the module's text says, of a matrix [out, in]."""

    format: str
    shape: tuple[int, int]
    numbers: Tensor
    scales: Tensor

    @property
    def group(self) -> int:
        """Input channels that share a scale: all of them, save in int4."""
        return self.numbers.shape[2] if self.format == "int4" else self.shape[1]


def quantise(weight: Tensor, format: str, *, group: int = INT4_GROUP) -> Quantised:
    """Rounds weight [out, in] to ``format``, a panel of output channels at a time.

    ``group`` is int4's. Allocates the result and at most three times _PANEL_BYTES beside it (or
    three output channels in float32, where that is more). An output channel or group of zeros has
    the scale 1; where it holds a number that is not finite, all its values become NaN.

    Raises ValueError for a wrong argument.
    """
    check_shape("weight", weight, (None, None))
    check_dtype("weight", weight, FLOATS)
    if format not in QUANTISED:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(QUANTISED)}")
    if group not in INT4_GROUPS:
        raise ValueError(f"group is {group}; it must be one of {INT4_GROUPS}")
    made = _empty(weight, format, group)
    for rows in _panels(weight.shape[0], weight.shape[1]):
        if format == "int4":
            packed, scales = _int4_panel(weight[rows].float(), group)
            made.numbers[:, rows] = packed
            made.scales[:, rows] = scales
        else:
            made.numbers[rows], made.scales[rows] = _channel_panel(weight[rows].float(), format)
    return made


def dequantise(matrix: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values [out, in], rounded once to ``dtype``."""
    out_features, in_features = matrix.shape
    if matrix.format != "int4":
        return (matrix.numbers.float() * matrix.scales.unsqueeze(1)).to(dtype)
    scales = matrix.scales.transpose(0, 1).reshape(out_features, -1, 1)
    values = unpack_int4(matrix.numbers).float() * scales.float()
    return values.reshape(out_features, -1)[:, :in_features].to(dtype)


def pack_int4(numbers: Tensor) -> Tensor:
    """numbers [out, 2 tiles, group] int8 in -7 .. 7 to bytes [tiles, out, group] uint8."""
    out_features, halves, group = numbers.shape
    nibbles = (numbers + INT4_OFFSET).to(torch.uint8).view(out_features, halves // 2, 2, group)
    return (nibbles[:, :, 0] | (nibbles[:, :, 1] << 4)).transpose(0, 1).contiguous()


def unpack_int4(packed: Tensor) -> Tensor:
    """bytes [tiles, out, group] to numbers [out, 2 tiles, group] int8."""
    tiles, out_features, group = packed.shape
    nibbles = torch.stack((packed & 15, packed >> 4), dim=1)  # [tiles, 2, out, group]
    numbers = nibbles.to(torch.int8) - INT4_OFFSET
    return numbers.permute(2, 0, 1, 3).reshape(out_features, 2 * tiles, group)


def _empty(weight: Tensor, format: str, group: int) -> Quantised:
    out_features, in_features = weight.shape
    numbers_shape: tuple[int, ...] = (out_features, in_features)
    scales_shape: tuple[int, ...] = (out_features,)
    dtypes = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.uint8}
    if format == "int4":
        tiles = ceil_div(in_features, 2 * group)
        numbers_shape, scales_shape = (tiles, out_features, group), (tiles, out_features, 2)
    scale_dtype = torch.bfloat16 if format == "int4" else torch.float32
    return Quantised(
        format=format,
        shape=(out_features, in_features),
        numbers=torch.empty(numbers_shape, dtype=dtypes[format], device=weight.device),
        scales=torch.empty(scales_shape, dtype=scale_dtype, device=weight.device),
    )


def _panels(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _PANEL_BYTES // (4 * max(1, columns)))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _channel_panel(values: Tensor, format: str) -> tuple[Tensor, Tensor]:
    largest = LARGEST[format]
    scales = _scales(values.abs().amax(dim=1), largest) if values.shape[1] else values.sum(dim=1)
    numbers = values.div(scales.unsqueeze(1)).clamp_(-largest, largest)
    if format == "int8":
        return numbers.round_().nan_to_num_(0.0).to(torch.int8), scales
    return numbers.to(torch.float8_e4m3fn), scales


def _int4_panel(values: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(bytes [tiles, rows, group], scales [tiles, rows, 2]) of values [rows, in]."""
    rows, columns = values.shape
    halves = 2 * ceil_div(columns, 2 * group)
    grouped = pad(values, (0, halves * group - columns)).view(rows, halves, group)
    # Rounded to 16 bits before it divides: numbers are nearest for the scale that is kept.
    scales = _scales(grouped.abs().amax(dim=2), LARGEST["int4"]).to(torch.bfloat16)
    numbers = grouped.div(scales.float().unsqueeze(2)).round_().clamp_(-7, 7).nan_to_num_(0.0)
    return pack_int4(numbers.to(torch.int8)), scales.view(rows, -1, 2).transpose(0, 1)


def _scales(magnitudes: Tensor, largest: float) -> Tensor:
    scales = magnitudes / largest
    return torch.where(scales == 0, 1.0, scales)

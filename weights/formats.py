"""Canonical number formats of parameters and their exact bytes.

A plain format holds any tensor, one element a number. A quantised one holds matrices [out, in]
only, with their scales; how their values come about is said where they are packed.

A format is named the same way everywhere: on the command line, in metrics, in plans. The names of
other worlds (safetensors headers, ``dtype`` in config.json) are translated here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType


def ceil_div(dividend: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-dividend // divisor)


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return ceil_div(size, multiple) * multiple


@dataclass(frozen=True, slots=True)
class Format:
    """How one number is held. ``torch_name`` is the attribute of the torch module."""

    name: str
    bytes_per_element: int
    safetensors_name: str
    torch_name: str


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "f32": Format("f32", 4, "F32", "float32"),
        "bf16": Format("bf16", 2, "BF16", "bfloat16"),
        "f16": Format("f16", 2, "F16", "float16"),
    }
)


@dataclass(frozen=True, slots=True)
class QuantisedFormat:
    """How a matrix is held in numbers of ``bits`` bits.

    ``group`` input channels share a scale of ``scale_bytes``; None: all of an output channel's.
    Groups come in pairs: input channels are padded to a multiple of two groups.
    """

    name: str
    bits: int
    group: int | None
    scale_bytes: int

    def matrix_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of a matrix [out, in]: numbers, scales, padding. Output channels add up: a fused
        matrix takes what its parts take."""
        held, scales = in_features, 1
        if self.group is not None:
            scales = 2 * ceil_div(in_features, 2 * self.group)
            held = scales * self.group
        return out_features * (held * self.bits // 8 + scales * self.scale_bytes)


_QUANTISED = {
    "int8": QuantisedFormat("int8", 8, None, 4),
    "int4": QuantisedFormat("int4", 4, 64, 2),
    "fp8": QuantisedFormat("fp8", 8, None, 4),
}
QUANTISED: Mapping[str, QuantisedFormat] = MappingProxyType(_QUANTISED)


def add_quantised(format: QuantisedFormat) -> None:
    """Makes known a format that a backend brings along; QUANTISED shows it from now on.

    Raises ValueError for a name that means another format already.
    """
    if format.name in FORMATS or _QUANTISED.setdefault(format.name, format) != format:
        raise ValueError(f"there is another format named {format.name!r}")


def remove_quantised(format: QuantisedFormat) -> None:
    """Undoes ``add_quantised``. Raises ValueError for a format that is not known."""
    if _QUANTISED.get(format.name) != format:
        raise ValueError(f"there is no such format {format.name!r}")
    del _QUANTISED[format.name]


# Bytes per element of every dtype that a safetensors header may name. Those that are no Format
# above are legal in a file (masks, position ids) but are never parameters.
SAFETENSORS_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "F8_E8M0": 1,
        "I16": 2,
        "U16": 2,
        "F16": 2,
        "BF16": 2,
        "I32": 4,
        "U32": 4,
        "F32": 4,
        "I64": 8,
        "U64": 8,
        "F64": 8,
        "C64": 8,
    }
)

_BY_SAFETENSORS = {fmt.safetensors_name: fmt.name for fmt in FORMATS.values()}
_BY_TORCH = {fmt.torch_name: fmt.name for fmt in FORMATS.values()}


def get_format(name: str) -> Format:
    """The format called ``name``. Raises ValueError that lists the names there are."""
    try:
        return FORMATS[name]
    except KeyError:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(FORMATS)}") from None


def get_quantised(name: str) -> QuantisedFormat:
    """The quantised format called ``name``. Raises ValueError that lists the names there are."""
    try:
        return QUANTISED[name]
    except KeyError:
        raise ValueError(
            f"unknown quantised format {name!r}; known: {', '.join(QUANTISED)}"
        ) from None


def from_safetensors(dtype: str) -> str | None:
    """Format name of a safetensors dtype, or None where it cannot hold parameters."""
    return _BY_SAFETENSORS.get(dtype)


def from_torch_name(dtype: str) -> str | None:
    """Format name of a config.json ``dtype`` such as "bfloat16", with or without "torch."."""
    return _BY_TORCH.get(dtype.removeprefix("torch."))


def tensor_bytes(shape: Sequence[int], format: str) -> int:
    """Bytes of a dense tensor of ``shape`` elements held in ``format``; no padding is added."""
    return prod(shape) * get_format(format).bytes_per_element

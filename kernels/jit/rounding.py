"""Rounding that a GPU and the interpreter agree on, bit for bit."""

import triton
import triton.language as tl


@triton.jit
def round_to(values, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 ``values`` in ``dtype``, rounded to nearest even.

    A GPU's own conversion does that. The interpreter cuts off what does not fit into bfloat16, so
    there the bits are rounded by hand.
    """
    if INTERPRETED and dtype == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(values == values, rounded, 0x7FC0)  # a NaN stays one
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return values.to(dtype)


@triton.jit
def nearest_integer(values):
    """float32 ``values`` below 2^22 in size, rounded to nearest even: beyond 1.5 * 2^23 neighbours
    of the format are 1 apart, so that the addition rounds."""
    return (values + 12582912.0) - 12582912.0


@triton.jit
def float8_bits(values):
    """The bits of float32 ``values`` as float8_e4m3fn, in uint8, rounded to nearest even.

    By hand, since neither the interpreter nor an sm_80 can convert. ``values`` are at most 448 in
    size, or NaN.
    """
    bits = values.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # Normal numbers: 3 of 23 bits of the mantissa stay (a carry runs into the exponent, as it
    # should), and the exponent's bias falls from 127 to 7.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    # Below 2^-6 the format counts multiples of 2^-9; 2^23 more, and the mantissa is the count.
    counted = tl.abs(values) * 512.0 + 8388608.0
    tiny = counted.to(tl.uint32, bitcast=True) & 0xF
    numbers = tl.where(tl.abs(values) < 0.015625, tiny, normal)
    numbers = tl.where(values == values, numbers, 0x7F)
    return (numbers | ((bits >> 24) & 0x80)).to(tl.uint8)

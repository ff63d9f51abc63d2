"""What the matrix products share: widening numbers, unpacking nibbles, the epilogue.

Numbers of 8 and 4 bits become 16-bit floats four bytes at a time, by moving them under an exponent:
a byte or nibble in the low bits of the float 128 (bfloat16) or 1024 (float16) is that float plus
the number, exactly; the float and the offset are then taken off. That is 2 instructions or fewer
for a weight, where conversions one by one take 4 to 5 and hide the memory's speed.
"""

import triton
import triton.language as tl

# uint8 -> low nibble - 8, high nibble - 8
INT4_BF16 = tl.constexpr("""
    {
    .reg .b32 low, high, one, offset;
    mov.b32 one, 0x3F803F80;
    mov.b32 offset, 0xC308C308;
    and.b32 low, $4, 0x0F0F0F0F;
    shr.u32 high, $4, 4;
    and.b32 high, high, 0x0F0F0F0F;
    prmt.b32 $0, low, 0x43434343, 0x4140;
    prmt.b32 $1, low, 0x43434343, 0x4342;
    prmt.b32 $2, high, 0x43434343, 0x4140;
    prmt.b32 $3, high, 0x43434343, 0x4342;
    fma.rn.bf16x2 $0, $0, one, offset;
    fma.rn.bf16x2 $1, $1, one, offset;
    fma.rn.bf16x2 $2, $2, one, offset;
    fma.rn.bf16x2 $3, $3, one, offset;
    }
    """)
INT4_F16 = tl.constexpr("""
    {
    .reg .b32 low, high, offset;
    mov.b32 offset, 0x64086408;
    and.b32 low, $4, 0x0F0F0F0F;
    shr.u32 high, $4, 4;
    and.b32 high, high, 0x0F0F0F0F;
    prmt.b32 $0, low, 0x64646464, 0x4140;
    prmt.b32 $1, low, 0x64646464, 0x4342;
    prmt.b32 $2, high, 0x64646464, 0x4140;
    prmt.b32 $3, high, 0x64646464, 0x4342;
    sub.rn.f16x2 $0, $0, offset;
    sub.rn.f16x2 $1, $1, offset;
    sub.rn.f16x2 $2, $2, offset;
    sub.rn.f16x2 $3, $3, offset;
    }
    """)
# int8: bfloat16 has room for seven bits: 128 + (low seven) less 128, or less 256 where the sign is
# set, which is 128 with the sign's bit in the same place.
INT8_BF16 = tl.constexpr("""
    {
    .reg .b32 low, sign, less, first, second;
    mov.b32 less, 0xBF80BF80;
    and.b32 low, $2, 0x7F7F7F7F;
    and.b32 sign, $2, 0x80808080;
    prmt.b32 first, sign, 0x43434343, 0x4140;
    prmt.b32 second, sign, 0x43434343, 0x4342;
    prmt.b32 $0, low, 0x43434343, 0x4140;
    prmt.b32 $1, low, 0x43434343, 0x4342;
    fma.rn.bf16x2 $0, first, less, $0;
    fma.rn.bf16x2 $1, second, less, $1;
    }
    """)
INT8_F16 = tl.constexpr("""
    {
    .reg .b32 bytes, offset;
    mov.b32 offset, 0x64806480;
    xor.b32 bytes, $2, 0x80808080;
    prmt.b32 $0, bytes, 0x64646464, 0x4140;
    prmt.b32 $1, bytes, 0x64646464, 0x4342;
    sub.rn.f16x2 $0, $0, offset;
    sub.rn.f16x2 $1, $1, offset;
    }
    """)
# float8_e4m3fn as bytes: its exponent and mantissa under the wider exponent, then multiplied by
# what the two biases differ by. Subnormals come out right; adding -0 changes nothing.
_FP8 = """
    {
    .reg .b32 first, second, sign, more, nothing;
    mov.b32 more, MORE;
    mov.b32 nothing, 0x80008000;
    prmt.b32 first, $2, 0, 0x1404;
    prmt.b32 second, $2, 0, 0x3424;
    and.b32 sign, first, 0x80008000;
    shr.u32 first, first, SHIFT;
    and.b32 first, first, MASK;
    or.b32 first, first, sign;
    and.b32 sign, second, 0x80008000;
    shr.u32 second, second, SHIFT;
    and.b32 second, second, MASK;
    or.b32 second, second, sign;
    fma.rn.TYPE $0, first, more, nothing;
    fma.rn.TYPE $1, second, more, nothing;
    }
    """
FP8_BF16 = tl.constexpr(  # 2**120
    _FP8.replace("MORE", "0x7B807B80")
    .replace("SHIFT", "4")
    .replace("MASK", "0x07F007F0")
    .replace("TYPE", "bf16x2")
)
FP8_F16 = tl.constexpr(  # 2**8
    _FP8.replace("MORE", "0x5C005C00")
    .replace("SHIFT", "1")
    .replace("MASK", "0x3F803F80")
    .replace("TYPE", "f16x2")
)


@triton.jit
def nibbles(packed, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """uint8 to the numbers of the low and of the high nibbles, -8 .. 7, exactly, in DTYPE."""
    if INTERPRETED or tl.float32 == DTYPE:
        low = ((packed & 15).to(tl.int32) - 8).to(DTYPE)
        high = ((packed >> 4).to(tl.int32) - 8).to(DTYPE)
    elif tl.bfloat16 == DTYPE:
        low, high = tl.inline_asm_elementwise(
            INT4_BF16, "=r,=r,=r,=r,r", [packed], (tl.bfloat16, tl.bfloat16), True, 4
        )
    else:
        low, high = tl.inline_asm_elementwise(
            INT4_F16, "=r,=r,=r,=r,r", [packed], (tl.float16, tl.float16), True, 4
        )
    return low, high


@triton.jit
def scale_pairs(pairs):
    """int32, two bfloat16 each, to the float32 of the first (low half) and of the second."""
    low = (pairs << 16).to(tl.float32, bitcast=True)
    high = (pairs & -65536).to(tl.float32, bitcast=True)
    return low, high


@triton.jit
def widened(numbers, FORMAT: tl.constexpr, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Numbers of a format that has one an element, exactly, in DTYPE.

    fp8_bits is float8_e4m3fn as bytes, for architectures that have no conversion for it.
    """
    PLAIN_ARITHMETIC: tl.constexpr = INTERPRETED or tl.float32 == DTYPE
    if FORMAT == "fp8_bits":
        if PLAIN_ARITHMETIC:
            bits = numbers.to(tl.uint16)
            half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)  # the number / 256
            return (half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0).to(DTYPE)
        elif tl.bfloat16 == DTYPE:
            return tl.inline_asm_elementwise(FP8_BF16, "=r,=r,r", [numbers], tl.bfloat16, True, 4)
        else:
            return tl.inline_asm_elementwise(FP8_F16, "=r,=r,r", [numbers], tl.float16, True, 4)
    elif FORMAT == "int8" and not PLAIN_ARITHMETIC:
        if tl.bfloat16 == DTYPE:
            return tl.inline_asm_elementwise(INT8_BF16, "=r,=r,r", [numbers], tl.bfloat16, True, 4)
        else:
            return tl.inline_asm_elementwise(INT8_F16, "=r,=r,r", [numbers], tl.float16, True, 4)
    else:
        return numbers.to(tl.float32).to(DTYPE) if FORMAT == "fp8" else numbers.to(DTYPE)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """float32 to float32; tanh by an exponential, since tl has none."""
    if ACTIVATION == "silu":
        return x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x * (1.0 - 1.0 / (1.0 + tl.exp(2.0 * inner)))
    elif ACTIVATION == "gelu_erf":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "relu":
        return tl.where(x < 0.0, 0.0, x)  # NaN stays
    else:
        return x


@triton.jit
def finished(
    acc,
    n,
    at,
    kept,
    bias,
    residual,
    out_features,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """float32 sums plus bias [n], activation, plus residual [at]; n, at and acc broadcast."""
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n < out_features, other=0.0).to(tl.float32)
    acc = activated(acc, ACTIVATION)
    if HAS_RESIDUAL:
        acc += tl.load(residual + at, mask=kept, other=0.0).to(tl.float32)
    return acc

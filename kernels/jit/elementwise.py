"""Activations, and rows gathered from tables."""

import triton
import triton.language as tl

from kernels.jit.rounding import round_to


@triton.jit
def activate(x, KIND: tl.constexpr):
    """float32 in, float32 out."""
    RELU: tl.constexpr = KIND == "relu" or KIND == "relu2"
    tl.static_assert(KIND == "silu" or KIND == "gelu_tanh" or KIND == "gelu_erf" or RELU)
    if KIND == "silu":
        return x * _logistic(x)
    elif KIND == "gelu_tanh":
        # (1 + tanh(u)) / 2 is the logistic function of 2 u.
        return x * _logistic(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "gelu_erf":
        return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    else:
        x = tl.where(x < 0.0, 0.0, x)  # keeps a NaN, as a maximum need not
        return x * x if KIND == "relu2" else x


@triton.jit
def _logistic(x):
    """1 / (1 + exp(-x)), where no exponential overflows."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, small, 1.0) / (1.0 + small)


@triton.jit
def activation(
    x_ptr,  # [T, WIDTH], or [T, 2 WIDTH] where GATED; rows x_stride apart
    out_ptr,  # [T, WIDTH]
    x_stride,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    columns = tl.program_id(0) % PARTS * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x_ptr += row * x_stride
    values = activate(tl.load(x_ptr + columns, inside, other=0.0).to(tl.float32), KIND)
    if GATED:
        values *= tl.load(x_ptr + WIDTH + columns, inside, other=0.0).to(tl.float32)
    out = round_to(values, out_ptr.dtype.element_ty, INTERPRETED)
    tl.store(out_ptr + row * WIDTH + columns, out, inside)


@triton.jit
def _softplus(x):
    """ln(1 + exp(x)), where no exponential overflows."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x below 0; by its series where the difference would cancel."""
    near = tl.maximum(x, -0.25)
    series = 1.0 + near / 6.0
    for n in tl.static_range(5, 1, -1):
        series = 1.0 + near / n * series
    return tl.where(x > -0.25, near * series, tl.exp(x) - 1.0)


@triton.jit
def xielu(
    x_ptr,  # [T, WIDTH], rows x_stride apart
    alpha_p_ptr,  # [1], as are the next three
    alpha_n_ptr,
    beta_ptr,
    epsilon_ptr,
    out_ptr,  # [T, WIDTH]
    x_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    columns = tl.program_id(0) % PARTS * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    beta = tl.load(beta_ptr).to(tl.float32)
    positive = _softplus(tl.load(alpha_p_ptr).to(tl.float32))
    negative = beta + _softplus(tl.load(alpha_n_ptr).to(tl.float32))
    x = tl.load(x_ptr + row * x_stride + columns, inside, other=0.0).to(tl.float32)
    bounded = tl.minimum(x, tl.load(epsilon_ptr).to(tl.float32))
    values = tl.where(x > 0.0, positive * x * x, (_expm1(bounded) - x) * negative) + beta * x
    out = round_to(values, out_ptr.dtype.element_ty, INTERPRETED)
    tl.store(out_ptr + row * WIDTH + columns, out, inside)


@triton.jit
def embedding(
    ids_ptr,  # [T] int32 or int64
    table_ptr,  # [V, WIDTH]
    positions_ptr,  # [T] int32 or int64, where POSITIONED
    position_table_ptr,  # [P, WIDTH], where POSITIONED
    out_ptr,  # [T, WIDTH]
    WIDTH: tl.constexpr,
    POSITIONED: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    PARTS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    token = tl.program_id(0) // PARTS
    columns = tl.program_id(0) % PARTS * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    row = tl.load(ids_ptr + token).to(tl.int64)
    values = tl.load(table_ptr + row * WIDTH + columns, inside, other=0.0)
    if POSITIONED:
        position = tl.load(positions_ptr + token).to(tl.int64)
        added = tl.load(position_table_ptr + position * WIDTH + columns, inside, other=0.0)
        total = values.to(tl.float32) + added.to(tl.float32)
        values = round_to(total, out_ptr.dtype.element_ty, INTERPRETED)
    tl.store(out_ptr + token.to(tl.int64) * WIDTH + columns, values, inside)

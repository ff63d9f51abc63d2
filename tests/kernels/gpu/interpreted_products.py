"""Tiles multiplied in one order of addition, for Triton's interpreter.

The interpreter multiplies with numpy's BLAS, which adds up in an order of its own: it depends on
the processor, on a row's place in the tile and on the tile's height. Bits would then tell of BLAS
and not of the kernel. Here every element of a tile's product is added up from its first channel to
its last, in float32, each product and each sum rounded; what tiles and splits there are, and in
which order they are added to each other, is still the kernel's own and shows in its bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """a [M, K] @ b [K, N] in float32, added up from the first of K to the last, whatever M and N.

    numpy's own loops (no BLAS: ``optimize`` is off) run over N innermost where both lie row by row,
    and so add channel after channel to a row of the result. With N of one they would add up in
    pieces, so such a product gets a second column.
    """
    if b.shape[1] == 1:
        return product(a, np.repeat(b, 2, axis=1))[:, :1]
    return np.einsum("mk,kn->mn", np.ascontiguousarray(a), np.ascontiguousarray(b), optimize=False)  # type: ignore[no-any-return]


def install() -> None:
    """Makes the interpreter's tl.dot add up so, where it makes float32 of floats."""
    from triton.runtime import interpreter

    real = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        if d.data.dtype != np.float32 or not (_is_float(a.data) and _is_float(b.data)):
            return real(self, a, b, d, *precision)
        if a.data.ndim != 2:
            raise NotImplementedError("a product of more than one pair of tiles is not made here")
        tile = product(a.data.astype(np.float32), b.data.astype(np.float32))
        return interpreter.TensorHandle(tile + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _is_float(data: NDArray[Any]) -> bool:
    return data.dtype in (np.float16, np.float32)  # others are bits that stand for a number

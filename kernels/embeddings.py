"""Rows of the token table, with the rows of a learned position table added."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kernels.checks import (
    FLOATS,
    INTEGERS,
    check_both,
    check_contiguous,
    check_dtype,
    check_same_device,
    check_shape,
)
from kernels.dispatch import select


def embedding(
    token_ids: Tensor,
    table: Tensor,
    *,
    positions: Tensor | None = None,
    position_table: Tensor | None = None,
) -> Tensor:
    """``table[token_ids] (+ position_table[positions])``: [T, D] in the table's dtype.

    token_ids [T] and positions [T] are int32 or int64; table [V, D] and position_table [P, D] are
    float32, bfloat16 or float16. The sum is rounded once. Raises ValueError for a wrong argument
    and, on a CPU, IndexError for an id outside its table; on a GPU ids are trusted.
    """
    check_shape("token_ids", token_ids, (None,))
    check_dtype("token_ids", token_ids, INTEGERS)
    check_shape("table", table, (None, None))
    check_dtype("table", table, FLOATS)
    check_contiguous("table", table)
    check_both("positions", positions, "position_table", position_table)
    check_same_device(
        table=table, token_ids=token_ids, positions=positions, position_table=position_table
    )
    if positions is not None and position_table is not None:
        check_shape("positions", positions, (token_ids.shape[0],))
        check_dtype("positions", positions, INTEGERS)
        check_shape("position_table", position_table, (None, table.shape[1]))
        check_dtype("position_table", position_table, (table.dtype,))
    run: Callable[..., Tensor] = select("embedding", table.device)
    return run(token_ids, table, positions, position_table)

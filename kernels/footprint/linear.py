"""Which form a CPU's matrix product takes, and what it holds beside its result. No torch.

The forms themselves are in kernels.cpu.linear; a memory plan counts their temporaries, and a start
runs each padded size once, from the numbers here.
"""

from __future__ import annotations

PANEL_BYTES = 4 << 20  # of a 16-bit weight widened to float32 at once
MANY_ROWS = 128  # from here on a 16-bit weight is widened, where the machine has no matrix unit
LEAST_PADDED = 16  # the smallest padded number of rows; the others are its doubles
FEW_ROWS = range(6, 17)  # of these the product with a large float32 weight is made transposed
LARGE_WEIGHT = 1 << 20  # elements


def is_transposed(rows: int, columns: int, out: int) -> bool:
    """Whether the float32 product [rows, columns] x [columns, out] is made transposed."""
    return rows in FEW_ROWS and columns * out >= LARGE_WEIGHT


def padded_rows(rows: int) -> int:
    """The number of rows that a 16-bit plain product of ``rows`` really computes."""
    return max(LEAST_PADDED, 1 << (rows - 1).bit_length())


def padded_sizes(most_rows: int) -> tuple[int, ...]:
    """Every value of ``padded_rows`` for 1 to ``most_rows`` rows, rising."""
    doublings = (padded_rows(most_rows) // LEAST_PADDED).bit_length()
    return tuple(LEAST_PADDED << power for power in range(doublings))


def panel_rows(columns: int, out: int) -> int:
    """Rows of a 16-bit weight [out, columns] that one panel of float32 holds."""
    return max(1, min(out, PANEL_BYTES // (4 * columns)))


def result_rows(rows: int, element_bytes: int) -> int:
    """Rows that the result of a product of ``rows`` keeps alive: a padded one is a part of all."""
    return padded_rows(rows) if element_bytes < 4 and 1 < rows < MANY_ROWS else rows


def product_temporaries(
    rows: int, columns: int, out: int, element_bytes: int
) -> tuple[tuple[str, int], ...]:
    """(name, bytes) of what [rows, columns] x [columns, out] holds beside operands and result.

    ``element_bytes`` is 4 or 2. For a machine without a matrix unit.
    """
    if element_bytes == 4:
        size = 4 * rows * out
        return (("transposed_product", size),) if is_transposed(rows, columns, out) else ()
    if rows == 1:
        return ()
    if rows < MANY_ROWS:
        return (("rows_padded", element_bytes * padded_rows(rows) * columns),)
    panel = panel_rows(columns, out)
    return (
        ("rows_float32", 4 * rows * columns),
        ("panel_float32", 4 * panel * columns),
        ("product_float32", 4 * rows * panel),
    )

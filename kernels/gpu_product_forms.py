"""What a GPU's matrix product holds beside operands and result, for a memory plan. No torch.

Few rows: nothing, or the partial sums of splits. Many rows of a quantised weight: panels of it as
16-bit floats, one at a time, for the library's product. Which form a product takes is in the tuning
table; what a form may hold is bounded here, whatever the table says.
"""

from __future__ import annotations

PLAIN = ("f32", "bf16", "f16")
MOST_SKINNY_ROWS = 32  # the most that the kernels for few rows take
MOST_SPLITS = 16
PARTIAL_BYTES = 4 << 20  # of the partial sums of one product
PANEL_BYTES = 64 << 20  # of one panel
PANEL_ALIGN = 128  # output channels


def splits_allowed(wanted: int, rows: int, out: int) -> int:
    """How many programs may share an output channel: their partial sums stay in PARTIAL_BYTES."""
    return max(1, min(wanted, MOST_SPLITS, PARTIAL_BYTES // max(1, 4 * rows * out)))


def panel_rows(columns: int, out: int, element_bytes: int) -> int:
    """Output channels of a quantised weight [out, columns] that one panel holds."""
    fitting = PANEL_BYTES // max(1, element_bytes * columns)
    return min(out, max(PANEL_ALIGN, fitting // PANEL_ALIGN * PANEL_ALIGN))


def gpu_product_temporaries(
    rows: int,
    columns: int,
    out: int,
    element_bytes: int,
    *,
    format: str = "bf16",
    batch_invariant: bool = False,
) -> tuple[tuple[str, int], ...]:
    """(name, most bytes) of what products of up to ``rows`` rows with a weight [out, columns] in
    ``format`` hold beside operands and result, one of them at a time.

    ``element_bytes`` are those of x and of the result.
    """
    if batch_invariant:
        return ()
    all_partials = MOST_SPLITS * 4 * min(rows, MOST_SKINNY_ROWS) * out
    splittable = splits_allowed(MOST_SPLITS, 1, out) > 1
    partials = min(all_partials, PARTIAL_BYTES) if splittable else 0
    if format in PLAIN or rows <= MOST_SKINNY_ROWS:
        return (("partial_sums", partials),) if partials else ()
    panel = element_bytes * columns * panel_rows(columns, out, element_bytes)
    return (("partial_sums_or_panel", max(partials, panel)),)

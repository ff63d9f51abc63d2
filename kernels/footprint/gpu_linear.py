"""What a GPU's matrix product holds beside operands and result, for a memory plan. No torch.

Few rows: nothing, or the partial sums of splits. Many rows of a quantised weight: panels of it as
16-bit floats, one at a time, for the library's product. Which form a product takes is in the tuning
table; what a form may hold is bounded here, whatever the table says.
"""

from __future__ import annotations

PLAIN = ("f32", "bf16", "f16")
MOST_SKINNY_ROWS = 32  # the most that the kernels for few rows take
MOST_SPLITS = 8  # programs that share an output channel
MOST_SPLIT_OUT = 4096  # more output channels fill a GPU without splits
LEAST_SPLIT_COLUMNS = 1024  # fewer input channels leave a split nothing to do
LEAST_PANEL_ROWS = 64  # fewer never take panels, nor pay for their traffic
PANEL_BYTES = 64 << 20  # of one panel
PANEL_ALIGN = 128  # output channels


def splits_allowed(wanted: int, columns: int, out: int) -> int:
    """How many programs may share an output channel of a weight [out, columns]."""
    if out > MOST_SPLIT_OUT or columns < LEAST_SPLIT_COLUMNS:
        return 1
    return min(wanted, MOST_SPLITS)


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
    ``format`` hold beside operands and result, one product at a time.

    ``element_bytes`` are those of x and of the result. At most 4 MiB for a plain format.
    """
    if batch_invariant:
        return ()
    splits = splits_allowed(MOST_SPLITS, columns, out)
    few = min(rows, MOST_SKINNY_ROWS)
    partials = 4 * splits * few * out if splits > 1 else 0
    panel = 0
    if format not in PLAIN and rows >= LEAST_PANEL_ROWS:
        panel = element_bytes * columns * panel_rows(columns, out, element_bytes)
    largest = max(partials, panel)
    return (("product_scratch", largest),) if largest else ()

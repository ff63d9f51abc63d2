"""What the plan books for a matrix product is what the kernel really makes."""

from __future__ import annotations

import pytest
import torch

from kernels import linear, pack_linear
from kernels.footprint.linear import FEW_ROWS, MANY_ROWS, product_temporaries, result_rows
from server.execution.live_bytes import LiveBytes

COLUMNS, OUT = 512, 4096  # more than one panel, and a large weight


@pytest.mark.parametrize("rows", [FEW_ROWS[0], FEW_ROWS[-1], 100, MANY_ROWS, 300])
@pytest.mark.parametrize("format", ["f32", "bf16"])
def test_the_temporaries_are_what_the_operation_makes(rows: int, format: str) -> None:
    weight = pack_linear(torch.zeros(OUT, COLUMNS), format)
    x = torch.zeros(rows, COLUMNS, dtype=weight.weight.dtype)
    element = x.element_size()
    if element == 2 and rows >= MANY_ROWS and torch.cpu._is_amx_tile_supported():
        pytest.skip("this machine has a matrix unit: nothing is widened")
    with LiveBytes(record_above=1) as live:
        linear(x, weight)
    booked = {nbytes for _, nbytes in product_temporaries(rows, COLUMNS, OUT, element)}
    result = element * result_rows(rows, element) * OUT
    assert set(live.made) - {result} == booked - {result}
    assert live.peak_bytes <= result + sum(booked), "one panel's product at a time"

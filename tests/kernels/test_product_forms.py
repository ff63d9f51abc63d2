"""The numbers of padded rows that a start prepares are all that occur."""

from __future__ import annotations

import pytest

from kernels.footprint.linear import MANY_ROWS, padded_rows, padded_sizes


@pytest.mark.parametrize("most", [1, 16, 17, 64, 65, MANY_ROWS - 1, 512])
def test_the_padded_sizes_are_those_that_some_number_of_rows_is_padded_to(most: int) -> None:
    assert padded_sizes(most) == tuple(sorted({padded_rows(rows) for rows in range(1, most + 1)}))


def test_the_last_rows_that_are_not_widened_are_padded_to_128() -> None:
    assert padded_sizes(MANY_ROWS - 1) == (16, 32, 64, 128)

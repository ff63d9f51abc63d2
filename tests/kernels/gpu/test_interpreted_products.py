"""What the interpreter's tl.dot adds up, and in which order: the premise of every test of bits."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.gpu.interpreted_products import product


def one_by_one(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        total += a[:, k : k + 1] * b[k : k + 1]
    return total


def tiles(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(m * n + k)
    return draw.standard_normal((m, k), np.float32), draw.standard_normal((k, n), np.float32)


@pytest.mark.parametrize("k", [1, 2, 16, 64, 136])
@pytest.mark.parametrize(
    ("m", "n"), [(1, 1), (1, 16), (16, 1), (2, 3), (16, 16), (64, 8), (37, 128)]
)
def test_channels_are_added_from_first_to_last(m: int, n: int, k: int) -> None:
    a, b = tiles(m, n, k)
    wanted = one_by_one(a, b)
    assert product(a, b).tobytes() == wanted.tobytes()
    in_columns = np.asfortranarray(a), np.asfortranarray(b)
    assert product(*in_columns).tobytes() == wanted.tobytes()
    wider = np.repeat(np.repeat(a, 2, 0), 2, 1)[::2, ::2], np.repeat(b, 3, 1)[:, ::3]
    assert product(*wider).tobytes() == wanted.tobytes()


def test_a_row_and_a_column_are_the_same_bits_wherever_they_lie() -> None:
    a, b = tiles(64, 32, 128)
    whole = product(a, b)
    for first, last in ((0, 1), (1, 3), (5, 38), (31, 64)):
        assert np.array_equal(product(a[first:last], b), whole[first:last])
        assert np.array_equal(product(a, b[:, first % 32 : last]), whole[:, first % 32 : last])
    order = np.random.default_rng(1).permutation(64)
    assert np.array_equal(product(a[order], b), whole[order])


def test_tiles_of_fewer_channels_give_other_bits() -> None:
    """Else a kernel's order of tiles could not be seen."""
    a, b = tiles(16, 16, 64)
    halves = product(a[:, :32], b[:32]) + product(a[:, 32:], b[32:])
    assert not np.array_equal(halves, product(a, b))

"""Native step inputs and committed tokens against the oracle."""

from __future__ import annotations

import pytest
import torch

from kernels.cpu.native import step_inputs as native
from tests.kernels.gpu.test_step_inputs_kernel import (
    CASES,
    Backend,
    assert_committed,
    assert_gathered,
    case,
)

pytestmark = pytest.mark.usefixtures("native_level")

NATIVE = Backend(native, torch.device("cpu"))


@pytest.mark.parametrize(("block_size", "chunks", "padded"), CASES)
def test_a_step_is_gathered_from_rows(block_size: int, chunks: list[int], padded: int) -> None:
    assert_gathered(NATIVE, case(block_size, chunks, seed=len(chunks)), padded)


@pytest.mark.parametrize("group", range(3))
def test_each_group_of_the_cache_has_its_own_tables(group: int) -> None:
    assert_gathered(NATIVE, case(64, [1, 130, 1], seed=9, groups=3), 3, group)


def test_chosen_tokens_follow_their_rows() -> None:
    assert_committed(NATIVE)

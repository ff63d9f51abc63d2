"""What the quick interpreter describes and replaces is as Triton's own interpreter has it."""

from __future__ import annotations

import torch
import triton.language as tl

from kernels.gpu import elementwise


def test_types_of_blocks_are_described_as_tritons_own_are() -> None:
    shape = [tl.constexpr(4), 8]
    block = tl.block_type(tl.float32, shape)
    assert (block.numel, block.name) == (32, "<['4', '8'], fp32>")
    assert list(block.shape) == [4, 8]
    assert block == tl.block_type(tl.float32, block.shape) != tl.block_type(tl.float32, [8, 4])
    assert block.with_element_ty(tl.int8) != block
    value = tl.tensor(None, block)
    assert [size.value for size in value.shape] == [4, 8]
    assert (value.numel.value, value.dtype) == (32, tl.float32)


def test_the_language_is_whole_again_after_each_launch(device: torch.device) -> None:
    x = torch.ones(3, 8, device=device)
    for _ in range(2):
        elementwise.activation(x, "silu")
        assert tl.core.is_builtin(tl.load)
        assert tl.static_range is not range

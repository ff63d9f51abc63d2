"""Blocks of the cache are copied in the direction that a plan says, in every layer."""

from __future__ import annotations

import torch

from server.execution.kv_cache import KVCache


def test_a_copy_goes_from_the_first_of_a_pair_to_the_second() -> None:
    tensor = torch.randn(3, 6, 2, 2, 4, 8, generator=torch.Generator().manual_seed(1))
    before = tensor.clone()
    KVCache(tensor).copy([(0, 4), (2, 1), (2, 5)])
    for block, source in enumerate((0, 2, 2, 3, 0, 2)):
        assert torch.equal(tensor[:, block], before[:, source])


def test_a_block_that_is_handed_out_has_nothing_to_read_where_that_is_watched() -> None:
    tensor = torch.zeros(2, 4, 2, 1, 4, 8)
    watched = KVCache(tensor, poison=True)
    assert tensor.isnan().all()
    tensor.zero_()
    watched.hand_out([1, 3])
    assert tensor[:, [1, 3]].isnan().all() and not tensor[:, [0, 2]].isnan().any()
    KVCache(tensor.zero_()).hand_out([1, 3])
    assert not tensor.isnan().any()

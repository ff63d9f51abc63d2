"""Blocks of the cache are copied in the direction that a plan says, in every layer, and one that is
handed out has nothing to read where that is watched: on a CPU, and on a device that runs late."""

from __future__ import annotations

import torch

from server.engine.request import SamplingParams
from server.engine.step_plan import PlannedRow, StepPlan
from server.execution.model_runner import ModelRunner
from tests.execution import stepping
from tests.execution.late_plans import Late


def cache_of(runner: ModelRunner) -> torch.Tensor:
    runner.device.synchronize()
    return runner.step._buffers["kv_cache"]


def test_a_copy_goes_from_the_first_of_a_pair_to_the_second(runner: ModelRunner) -> None:
    cache = cache_of(runner)
    cache.copy_(torch.randn(cache.shape, generator=torch.Generator().manual_seed(1)))
    before = cache.clone()
    runner.forward(StepPlan(1, block_copies=((0, 4), (2, 1), (2, 5))))
    after = cache_of(runner)
    for block, source in enumerate((0, 2, 2, 3, 0, 2)):
        assert torch.equal(after[:, block], before[:, source])


def test_a_block_that_is_handed_out_has_nothing_to_read_where_that_is_watched(
    runner: ModelRunner,
) -> None:
    cache = cache_of(runner)
    assert cache.isnan().all()
    cache.zero_()
    row = stepping.admitted([5, 6, 7], SamplingParams(seed=0), (3,))
    runner.forward(StepPlan(1, rows=(PlannedRow(0, 3),), admitted=(row,)))
    runner.rows.num_tokens[0] += 1  # one more to compute
    planned = PlannedRow(0, 1, new_block_ids=((1,),))
    runner.forward(StepPlan(2, rows=(planned,)))
    after = cache_of(runner)
    assert after[:, 3, :, :, 4:].isnan().all() and after[:, 1].isnan().all()
    assert not after[:, 3, :, :, :4].isnan().any()
    others = [block for block in range(after.shape[1]) if block not in (1, 3)]
    assert not after[:, others].isnan().any()


def test_nothing_is_watched_otherwise(late: Late) -> None:
    runner = late.cpu_runner(poison=False)
    row = stepping.admitted([5, 6, 7], SamplingParams(seed=0), (3,))
    runner.forward(StepPlan(1, rows=(PlannedRow(0, 3),), admitted=(row,)))
    assert not cache_of(runner).isnan().any()

"""How a runner on a device that runs late fails, what it holds, and how it warms up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kernels
from server.engine.step_plan import StepPlan
from server.execution.live_bytes import LiveBytes
from server.execution.warm_up import largest_plan
from server.memory.kinds import MemoryKind
from tests.equivalence import harness, workloads
from tests.execution import stepping
from tests.execution.fake_device import NotEnqueued
from tests.execution.late_plans import GREEDY, PENALISED, Late, assert_same, decode, prompts, start
from weights.synthetic.checkpoint import tiny_gpt2, tiny_llama, write_checkpoint

# -- how it fails ----------------------------------------------------------------------------------


def test_a_step_that_raised_is_told_by_its_result_and_the_rows_can_be_rebuilt(late: Late) -> None:
    plans = [prompts([GREEDY, PENALISED]), decode(2, [0, 1])]
    expected = late.on_cpu(plans)
    built = late.build()

    def fail(*args: object) -> None:
        raise RuntimeError("the device is unwell")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built.runner.step, "forward", fail)
        pending = start(built.runner, plans[0])
        with pytest.raises(RuntimeError, match="unwell"):
            pending.result()
    built.device.queue[built.device.done :] = []  # what was behind it
    again = replace(plans[0], released=(0, 1))
    assert_same(stepping.step(built.runner, again), expected[0])
    assert_same(stepping.step(built.runner, plans[1]), expected[1])


# -- memory --------------------------------------------------------------------------------------

SPECS = {
    "llama": tiny_llama(vocab_size=3000, hidden_size=64, intermediate_size=256, num_layers=2),
    "gpt2": tiny_gpt2(vocab_size=5000, hidden_size=128),
}


@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("name", SPECS)
def test_the_largest_step_stays_within_the_plan(
    name: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(SPECS[name], tmp_path, seed=1, format=format)
    sizes = {"num_blocks": 256, "max_num_seqs": 16, "max_num_batched_tokens": 2048}
    built = Late(tmp_path, monkeypatch).build(format=format, max_logit_rows=64, **sizes)
    measured = built.runner.warm_up()
    planned = built.layout.bytes(MemoryKind.ACTIVATIONS)
    assert measured <= planned
    assert planned - measured <= 0.1 * planned
    listed = {nbytes for phase in built.layout.phases for _, nbytes in phase.tensors}
    with LiveBytes(record_above=1 << 20) as step:
        stepping.step(built.runner, largest_plan(built.layout.config))
    assert step.made
    assert {nbytes for nbytes in step.made if nbytes not in listed} == set()
    assert 0 < built.layout.bytes(MemoryKind.GRAPHS) < planned


def test_pinned_memory_is_that_of_the_layout(late: Late) -> None:
    built = late.build()
    assert built.runner.pinned_bytes == built.layout.pinned_bytes > 0
    on_device = {buffer.name for buffer in built.layout.buffers}
    assert {"row_state", "packet", "logits", "kv_cache", "rotary_table"} <= on_device


# -- before the first request --------------------------------------------------------------------


def test_serving_asks_the_sampler_for_nothing_that_the_warm_up_did_not(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel is compiled for each combination of what is given, and each width of a report."""
    built = late.build(max_num_seqs=16, num_blocks=256)
    asked: set[tuple[object, ...]] = set()
    sample, report = kernels.sample, kernels.token_logprobs

    def sampled(logits: torch.Tensor, params: kernels.SamplingTensors) -> object:
        names = kernels.SamplingTensors.__slots__
        asked.add(tuple(name for name in names if getattr(params, name) is not None))
        return sample(logits, params)

    def reported(logits: torch.Tensor, ids: torch.Tensor, num_top: int) -> object:
        asked.add((num_top,))
        return report(logits, ids, num_top)

    monkeypatch.setattr(kernels, "sample", sampled)
    monkeypatch.setattr(kernels, "token_logprobs", reported)
    built.runner.warm_up()
    warmed = set(asked)
    assert len(warmed) == 18 + 3
    for requests in (workloads.mixed(), workloads.growing(), workloads.several_choices()):
        harness.run(built, requests, budget=64)  # type: ignore[arg-type]
    assert asked == warmed


def test_the_warm_up_meets_every_size_that_decode_steps_have(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = late.build(max_num_seqs=40, num_blocks=256)
    rows: set[int] = set()
    real = built.runner.forward_layers

    def forward(plan: StepPlan, num_layers: int | None) -> object:
        rows.add(len(plan.rows))
        return real(plan, num_layers)

    monkeypatch.setattr(built.runner, "forward_layers", forward)
    built.runner.warm_up()
    assert {*built.runner.graphs.sizes, 40} <= rows


# -- the fake itself -----------------------------------------------------------------------------


def test_the_fake_notices_what_a_device_would_wait_for(late: Late) -> None:
    built = late.build()
    counts = built.runner.step._buffers["output_counts"]
    cell = counts[0, 0]
    for waits in (
        cell.item,
        counts.nonzero,
        cell.cpu,
        lambda: torch.tensor([1]),
        lambda: int(cell),
    ):
        built.device.run(waits)
        with pytest.raises(NotEnqueued):
            built.device.synchronize()
    with pytest.raises(NotEnqueued, match="behind the device's back"):
        kernels.linear(torch.zeros(1, 64), built.runner.decoder.unembedding)

"""The layout knows of every byte: buffers by name, intermediates by size, weights by component."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kernels
from server.engine.step_plan import StepPlan, StepResult
from server.execution.build import BuiltRunner
from server.execution.layer_parts import Mlp
from server.execution.live_bytes import LiveBytes
from server.execution.warm_up import largest_plan
from server.memory.intermediates import sample_rows
from server.memory.kinds import Buffer, MemoryKind
from server.units import ceil_div
from tests.execution import stepping
from tests.execution.large_steps import SPECS, build

MIB = 1 << 20


def unlisted(built: BuiltRunner) -> list[int]:
    """Sizes above 1 MiB that the largest step's forward pass makes and the layout does not list."""
    listed = {nbytes for phase in built.layout.phases for _, nbytes in phase.tensors}
    with LiveBytes(record_above=MIB) as forward:
        built.runner.forward(largest_plan(built.layout.config))
    assert forward.made, "the step was too small to say anything"
    return [nbytes for nbytes in forward.made if nbytes not in listed]


@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("name", SPECS)
def test_the_largest_step_stays_within_the_plan(name: str, format: str, tmp_path: Path) -> None:
    built = build(name, format, tmp_path)
    measured = built.runner.warm_up()
    assert built.runner.largest_step_seconds > 0, "it tells as well how long that step takes"
    planned = built.layout.bytes(MemoryKind.ACTIVATIONS)
    assert measured <= planned
    assert planned - measured <= max(0.05 * measured, 8 * MIB)


@pytest.mark.parametrize("size", [5, 16])
def test_the_warm_up_samples_one_part_and_knows_what_all_of_them_hold_and_take(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, runner = (build("large vocabulary", "bf16", tmp_path).runner for _ in range(2))
    for one in (whole, runner):
        one.limits = replace(one.limits, penalised_rows=size)
    plan = largest_plan(whole.layout.config)
    whole.sample(whole.forward_layers(plan, whole.layers_to_measure), None)
    penalised: list[int] = []
    sample = kernels.sample

    def counted(logits: torch.Tensor, params: kernels.SamplingTensors) -> kernels.SampleOutput:
        if params.repetition is not None:
            penalised.append(logits.shape[0])
        return sample(logits, params)

    def measure(plan: StepPlan, layers: int) -> StepResult:
        return replace(real(plan, layers), forward_seconds=0.0, sample_seconds=10.0)

    real = runner._measure
    monkeypatch.setattr(kernels, "sample", counted)
    monkeypatch.setattr(runner, "_measure", measure)
    assert runner.warm_up() == whole.peak.peak_bytes
    parts = ceil_div(len(plan.rows), size)
    assert penalised == [size] * min(parts, 2)
    assert runner.largest_step_seconds == 10.0 * parts


@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["wide mlp", "gpt2"])
def test_every_large_intermediate_is_on_the_list(name: str, format: str, tmp_path: Path) -> None:
    assert unlisted(build(name, format, tmp_path)) == []


def test_an_allocation_that_is_not_on_the_list_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Mlp.activate

    def activate(self: Mlp, up: torch.Tensor) -> torch.Tensor:
        torch.empty(MIB + 4096, dtype=torch.uint8)
        return real(self, up)

    monkeypatch.setattr(Mlp, "activate", activate)
    assert set(unlisted(build("wide mlp", "f32", tmp_path))) == {MIB + 4096}


def test_the_sampler_works_on_a_bounded_part_of_the_logits(tmp_path: Path) -> None:
    built = build("large vocabulary", "f32", tmp_path)
    vocab = built.model.vocab_size
    handle = built.runner.forward(largest_plan(built.layout.config))
    with LiveBytes() as sampling:
        built.runner.sample(handle, None)
    # float64 sums over a part are the widest thing beside the logits themselves.
    logits = 4 * built.layout.config.scheduler.logit_rows * vocab
    assert max(sampling.made) <= max(logits, 8 * sample_rows(vocab) * vocab)


@pytest.mark.parametrize("name", SPECS)
def test_persistent_buffers_are_those_of_the_layout(name: str, tmp_path: Path) -> None:
    built = build(name, "bf16", tmp_path)
    held = built.held.by_kind()
    for kind in (MemoryKind.WEIGHTS, MemoryKind.KV_CACHE, MemoryKind.IO, MemoryKind.WORKSPACE):
        assert held[kind] == built.layout.bytes(kind), kind
    assert built.kv.total_bytes == held[MemoryKind.KV_CACHE]
    assert built.runner.workspace.nbytes == built.layout.buffer("attention_workspace").nbytes


@pytest.mark.parametrize("name", SPECS)
def test_measured_weights_agree_with_the_plan_by_component(name: str, tmp_path: Path) -> None:
    built = build(name, "f32", tmp_path)
    assert built.held.weights() == built.layout.weights


def test_a_step_is_watched_only_while_it_can_raise_the_peak(tmp_path: Path) -> None:
    runner = build("wide mlp", "f32", tmp_path).runner
    peak = runner.warm_up()
    assert peak == runner.peak.peak_bytes > 0
    before = len(runner.peak._measured)
    stepping.greedy(runner, [5, 6, 7], 3)
    assert len(runner.peak._measured) == before


def test_live_bytes_counts_what_is_alive_and_not_what_was() -> None:
    weight = torch.zeros(1000, 1000)
    with torch.inference_mode(), LiveBytes() as live:
        first = weight + 1
        second = first * 2
        del first
        view = second.t()
        kernels.pack_linear(weight, "f32")  # no copy, nothing new
        third = view + 1
    assert live.made == [4_000_000] * 3
    assert live.peak_bytes == 8_000_000
    assert third.shape == (1000, 1000)


def test_a_buffer_says_its_bytes() -> None:
    assert Buffer("x", (3, 5), "bf16", MemoryKind.IO).nbytes == 30

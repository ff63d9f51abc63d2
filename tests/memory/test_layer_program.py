"""The forward pass as data: where its values live, what it adds up to, and that it is what runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from kernels import LinearWeight
from kernels.backends import KernelBackend
from server.engine.request import SamplingParams
from server.engine.step_plan import PlannedRow, StepPlan
from server.execution.build import BuiltRunner, build_runner
from server.execution.layer_parts import Linear, StepTensors
from server.execution.layers import DecoderLayer, Values
from server.execution.warm_up import largest_plan
from server.memory.layer_program import (
    Activate,
    AddNorm,
    Attend,
    Operation,
    Product,
    Value,
    given,
    last_reads,
    layer_program,
)
from server.memory.phases import Phase, add_up
from server.startup.supported_models import operations_of
from tests.engine_configs import engine_config
from tests.execution import stepping
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import tiny_bloom, tiny_gpt2, tiny_llama, write_checkpoint

SPECS = {"llama": tiny_llama(), "gpt2": tiny_gpt2(), "bloom": tiny_bloom()}
# A layer whose attention and MLP read one normalised input: what a parallel block would be.
PARALLEL = (
    AddNorm("norm", ("hidden", "residual"), (Value("normed", 4), Value("residual", 4)), "norm"),
    Product("qkv", ("normed",), (Value("qkv", 12),), "attention.qkv", 4),
    Attend("attention", ("qkv",), (Value("attended", 4),)),
    Product("up", ("normed",), (Value("up", 16),), "mlp.up", 4),
    Activate("activation", ("up",), (Value("inner", 16),)),
    Product("down", ("inner",), (Value("hidden", 4),), "mlp.down", 16),
)


@dataclass(frozen=True)
class Channels:
    """A byte a channel, and nothing inside an operation."""

    def bytes_of(self, step: Operation, value: Value) -> int:
        return value.channels

    def moments(self, step: Operation) -> tuple[Phase, ...]:
        return (Phase(step.name, tuple((v.name, v.channels) for v in step.writes)),)


def test_a_value_dies_where_it_is_read_last() -> None:
    deaths = dict(zip((step.name for step in PARALLEL), last_reads(PARALLEL), strict=True))
    assert deaths == {
        "norm": {"hidden", "residual"},
        "qkv": set(),
        "attention": {"qkv"},
        "up": {"normed"},
        "activation": {"up"},
        "down": {"inner"},
    }
    assert given(PARALLEL) == ("hidden", "residual")


def test_a_plan_counts_a_value_until_it_dies() -> None:
    alive = {phase.name: phase.nbytes for phase in add_up(PARALLEL, Channels())}
    residual, normed, attended = 4, 4, 4
    assert alive == {
        "norm": 4 + 4 + 4 + 4,
        "qkv": residual + normed + 12,
        "attention": residual + normed + 12 + attended,
        "up": residual + normed + attended + 16,
        "activation": residual + attended + 16 + 16,
        "down": residual + attended + 16 + 4,
    }


@pytest.mark.parametrize("name", SPECS)
def test_layers_hand_on_what_they_are_given(name: str) -> None:
    program = layer_program(SPECS[name])
    assert given(program) == ("hidden", "residual")
    names = [step.name for step in program]
    assert len(set(names)) == len(names)
    left = set(given(program))
    for step, dying in zip(program, last_reads(program), strict=True):
        left = (left - dying) | {value.name for value in step.writes}
    assert left == {"hidden", "residual"}


def build(spec: ModelSpec, folder: Path) -> BuiltRunner:
    write_checkpoint(spec, folder, seed=1)
    config = engine_config(num_blocks=64, max_num_seqs=4, max_num_batched_tokens=128)
    return build_runner(folder, config, warm_up=False)


@pytest.mark.parametrize("name", SPECS)
def test_after_every_call_what_is_alive_is_what_the_plan_counts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and bytes, layer by layer, of the values that the decoder holds between its calls."""
    spec, seen = SPECS[name], []

    def run(self: DecoderLayer, values: Values, step: StepTensors) -> None:
        for call in self.calls:
            call(values, step)
            seen.append({name: value.nbytes for name, value in values.items()})

    built = build(spec, tmp_path)
    monkeypatch.setattr(DecoderLayer, "run", run)
    plan = largest_plan(built.layout.config)
    built.runner.forward(plan)

    program = layer_program(spec)
    alive = set(given(program))
    sizes = {value.name: value.channels for step in program for value in step.writes}
    expected = []
    for step, dying in zip(program, last_reads(program), strict=True):
        alive = (alive - dying) | {value.name for value in step.writes}
        expected.append({name: 4 * plan.num_tokens * sizes[name] for name in alive})
    assert seen == expected * spec.num_layers


@pytest.mark.parametrize("name", SPECS)
def test_a_backend_is_asked_for_the_operations_that_serving_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = set()
    implementation = KernelBackend.implementation

    def noted(self: KernelBackend, operation: str) -> object:
        ran.add(operation)
        return implementation(self, operation)

    monkeypatch.setattr(KernelBackend, "implementation", noted)
    runner = build(SPECS[name], tmp_path).runner
    asked = SamplingParams(seed=0, logprobs=1, presence_penalty=1.0)
    row = stepping.admitted([5, 9, 3], asked, (2,))
    rows = (PlannedRow(0, 3, samples=True),)
    stepping.step(runner, StepPlan(1, rows, admitted=(row,), block_copies=((0, 1),)))
    assert ran == set(operations_of(SPECS[name]))


def test_a_matrix_of_another_shape_than_the_program_multiplies_by_is_refused(
    tmp_path: Path,
) -> None:
    weight: LinearWeight = build(SPECS["llama"], tmp_path).runner.decoder.unembedding.weight
    out, columns = weight.shape
    with pytest.raises(ValueError, match=rf"down is \({out}, {columns}\); the model needs \(1, 2"):
        Linear("layers.0.mlp.down", weight, (1, 2))

"""What the runner refuses, and what it answers where a model goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.request import SamplingParams
from server.engine.step_plan import PlannedRow, StepPlan
from server.errors import StartupError
from server.execution.model_runner import ModelRunner
from server.memory.layout import max_context
from tests.execution import stepping
from weights.spec import RopeScaling, RopeSpec
from weights.synthetic.checkpoint import tiny_llama

IDS = [5, 9, 33, 60, 12, 44, 7]
SPEC = tiny_llama(vocab_size=100, num_layers=1, max_positions=64, intermediate_size=32)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    return stepping.built_from_spec(SPEC, tmp_path_factory.mktemp("model")).runner


def first_plan(sampling: SamplingParams, **changes: object) -> StepPlan:
    row = stepping.admitted(IDS, sampling, (3,))
    planned = PlannedRow(0, len(IDS), samples=True)
    return StepPlan(1, rows=(replace(planned, **changes),), admitted=(row,))  # type: ignore[arg-type]


def test_min_tokens_forbids_end_and_stop_ids(runner: ModelRunner) -> None:
    greedy = SamplingParams(seed=0, temperature=0.0)
    (best,) = stepping.step(runner, first_plan(greedy)).rows[0].token_ids
    stopping = replace(greedy, stop_token_ids=(best,))
    pending = first_plan(stopping, min_tokens_pending=True)
    assert stepping.step(runner, pending).rows[0].token_ids != (best,)
    eos = replace(greedy, logit_bias=((SPEC.eos_token_ids[0], 100.0),))
    assert stepping.step(runner, first_plan(eos)).rows[0].token_ids == SPEC.eos_token_ids
    pending = first_plan(eos, min_tokens_pending=True)
    assert stepping.step(runner, pending).rows[0].token_ids == (best,)


def test_a_model_that_gives_no_number_says_so_and_chooses_nothing(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.decoder.logits
    broken = runner._sampler
    monkeypatch.setattr(broken, "_logits", lambda hidden: real(hidden) * float("inf"))
    result = stepping.step(runner, first_plan(SamplingParams(seed=0, logprobs=2)))
    assert result.rows[0].non_finite
    assert result.rows[0].token_ids == ()
    assert result.rows[0].logprobs is None


def test_what_is_not_served_is_refused_by_name(runner: ModelRunner) -> None:
    plan = first_plan(SamplingParams(seed=0))
    with pytest.raises(ValueError, match="grammar masks"):
        runner.sample(runner.forward(plan), {0: b""})
    with pytest.raises(ValueError, match="no forward pass"):
        runner.sample(object(), None)


def test_a_plan_without_rows_only_changes_rows(runner: ModelRunner) -> None:
    assert stepping.step(runner, StepPlan(9, released=(0,))).rows == ()


def test_sizes_that_do_not_fit_the_model_are_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="max_model_len is 65; the model has positions for 64"):
        stepping.built_from_spec(SPEC, tmp_path, max_model_len=65)
    with pytest.raises(StartupError, match="max_logprobs is 100"):
        stepping.built(tmp_path, max_model_len=64, max_logprobs=100)


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_contexts_warm_up(length: int, tmp_path: Path) -> None:
    assert stepping.built_from_spec(SPEC, tmp_path, max_model_len=length).runner.warm_up() > 0


def test_a_stretched_context_counts_the_stretch() -> None:
    stretched = RopeSpec(scaling=RopeScaling.LINEAR, factor=4.0)
    assert max_context(tiny_llama(max_positions=64, rope=stretched)) == 256
    assert max_context(SPEC) == 64

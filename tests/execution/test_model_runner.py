"""What the runner refuses, and what it answers where a model goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.core import EngineCore
from server.engine.request import EngineRequest, SamplingParams, Task
from server.engine.step_plan import PlannedRow, StepPlan
from server.errors import StartupError
from server.execution import model_runner
from server.execution.model_runner import ModelRunner
from server.memory.kv_groups import kv_cache_spec
from server.memory.layout import max_context
from tests.execution import stepping
from tests.execution.late_plans import GREEDY, Late, prompts, start
from tests.execution.late_plans import IDS as LONG_IDS
from weights.spec import RopeScaling, RopeSpec
from weights.synthetic.checkpoint import tiny_llama

IDS = [5, 9, 33, 60, 12, 44, 7]
SPEC = tiny_llama(vocab_size=100, num_layers=1, max_positions=64, intermediate_size=32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    return stepping.built_from_spec(SPEC, tmp_path_factory.mktemp("model")).runner


def first_plan(sampling: SamplingParams, **changes: object) -> StepPlan:
    row = stepping.admitted(IDS, sampling, (3,))
    planned = PlannedRow(0, len(IDS), samples=True)
    return StepPlan(1, rows=(replace(planned, **changes),), admitted=(row,))  # type: ignore[arg-type]


def test_min_tokens_forbids_end_and_stop_ids(tiny: ModelRunner) -> None:
    greedy = SamplingParams(seed=0, temperature=0.0)
    (best,) = stepping.step(tiny, first_plan(greedy)).rows[0].token_ids
    stopping = replace(greedy, stop_token_ids=(best,))
    pending = first_plan(stopping, min_tokens_pending=True)
    assert stepping.step(tiny, pending).rows[0].token_ids != (best,)
    eos = replace(greedy, logit_bias=((SPEC.eos_token_ids[0], 100.0),))
    assert stepping.step(tiny, first_plan(eos)).rows[0].token_ids == SPEC.eos_token_ids
    pending = first_plan(eos, min_tokens_pending=True)
    assert stepping.step(tiny, pending).rows[0].token_ids == (best,)


def test_a_model_that_gives_no_number_says_so_and_chooses_nothing(
    tiny: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tiny.decoder.logits
    broken = tiny.step._sampler
    monkeypatch.setattr(broken, "_logits", lambda hidden, out: real(hidden) * float("inf"))
    result = stepping.step(tiny, first_plan(SamplingParams(seed=0, logprobs=2)))
    assert result.rows[0].non_finite
    assert result.rows[0].token_ids == ()
    assert result.rows[0].logprobs is None


def test_a_plan_without_rows_only_changes_rows(tiny: ModelRunner) -> None:
    assert stepping.step(tiny, StepPlan(9, released=(0,))).rows == ()


def test_sizes_that_do_not_fit_the_model_are_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="max_model_len is 65; the model has positions for 64"):
        stepping.built_from_spec(SPEC, tmp_path, max_model_len=65)
    with pytest.raises(StartupError, match="max_logprobs is 100"):
        stepping.built(tmp_path, max_model_len=64, max_logprobs=100)


@pytest.mark.parametrize("task", list(Task))
def test_an_engine_takes_the_tasks_that_its_runner_offers(task: Task, tiny: ModelRunner) -> None:
    config = tiny.layout.config
    core = EngineCore(tiny, kv_cache_spec(SPEC, config.cache), config.scheduler)
    core.submit([EngineRequest("r", tuple(IDS), SamplingParams(seed=0), task=task)])
    frame = core.step()
    assert frame is not None
    assert len(frame.accepted) == (task is Task.GENERATE)
    assert len(frame.refused) == (task is not Task.GENERATE)


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_contexts_warm_up(length: int, tmp_path: Path) -> None:
    assert stepping.built_from_spec(SPEC, tmp_path, max_model_len=length).runner.warm_up() > 0


def test_a_stretched_context_counts_the_stretch() -> None:
    stretched = RopeSpec(scaling=RopeScaling.LINEAR, factor=4.0)
    assert max_context(tiny_llama(max_positions=64, rope=stretched)) == 256
    assert max_context(SPEC) == 64


# -- what is refused, on a CPU and on a device that runs late -----------------------------------


def test_what_is_not_served_is_refused_by_name(runner: ModelRunner) -> None:
    plan = prompts([GREEDY])
    handle = runner.forward(plan)
    with pytest.raises(ValueError, match="grammar masks"):
        runner.sample(handle, {0: b""})
    with pytest.raises(ValueError, match="not a forward pass"):
        runner.sample(object(), None)
    runner.forward(StepPlan(2, released=(0,)))
    with pytest.raises(ValueError, match="step 1 is sampled after a later step"):
        runner.sample(handle, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PlannedRow(0, 2), "row 0 knows 16 tokens"),
        (PlannedRow(1, 1), "row 1 knows 0 tokens"),
        (PlannedRow(0, 1, new_block_ids=(tuple(range(20)),)), "row 0 would have 23 blocks"),
    ],
)
def test_tokens_and_slots_that_a_row_does_not_have_are_refused(
    row: PlannedRow, message: str, runner: ModelRunner
) -> None:
    start(runner, prompts([GREEDY]))  # in flight, its token counted on
    with pytest.raises(ValueError, match=message):
        runner.forward(StepPlan(2, rows=(row,)))


def test_a_token_is_not_chosen_before_the_context_is_computed(runner: ModelRunner) -> None:
    plan = prompts([GREEDY])
    with pytest.raises(ValueError, match="before its last one is computed"):
        runner.forward(replace(plan, rows=(PlannedRow(0, 7, samples=True),)))


def test_too_many_blocks_for_a_row_and_slots_too_few_are_refused(runner: ModelRunner) -> None:
    plan = prompts([GREEDY])
    tables = (tuple(range(17)),)
    with pytest.raises(ValueError, match="17 blocks; it holds 256 and 16"):
        runner.forward(replace(plan, admitted=(replace(plan.admitted[0], block_tables=tables),)))
    short = replace(plan.admitted[0], token_ids=tuple(LONG_IDS), block_tables=((1,),))
    with pytest.raises(ValueError, match="row 0 has 1 blocks"):
        runner.forward(StepPlan(1, rows=(PlannedRow(0, len(LONG_IDS)),), admitted=(short,)))


def test_a_table_for_each_group_is_asked_for(runner: ModelRunner) -> None:
    plan = prompts([GREEDY])
    row = plan.admitted[0]
    two = replace(row, block_tables=(*row.block_tables, (40, 41, 42)))
    with pytest.raises(ValueError, match="given 2 block tables; the KV cache has 1 groups"):
        runner.forward(replace(plan, admitted=(two,)))


def test_rows_that_cannot_be_numbered_are_refused(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner, "MOST_ROW_WORDS", 1000)
    message = "max_num_seqs 8 times max_model_len 256 is too much"
    with pytest.raises(ValueError, match=message):
        late.cpu_runner()
    with pytest.raises(ValueError, match=message):
        late.build()

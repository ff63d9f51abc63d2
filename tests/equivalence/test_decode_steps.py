"""Steps that give each row several tokens, run by one native program: the tokens are those that the
host asks for one by one, through the operations by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.core import EngineCore
from server.engine.request import EngineRequest, FinishReason, SamplingParams
from server.engine.step_plan import AdmittedRow, PlannedRow, StepPlan
from server.execution.build import BuiltRunner
from tests.equivalence import checks, harness
from tests.equivalence.checks import Setting
from tests.equivalence.harness import Run
from tests.equivalence.workloads import prompt, request
from tests.native_kernels import needs_native
from tests.parity.family_checkpoints import CASES, write_case

pytestmark = needs_native

GREEDY = SamplingParams(seed=0, temperature=0.0, max_tokens=40, ignore_eos=True)
DRAWN = SamplingParams(seed=5, temperature=0.9, max_tokens=40, ignore_eos=True)
CHAT = replace(DRAWN, top_p=0.9, top_k=30)
STOPS = tuple(range(3, 23))  # an eighth of the vocabulary: met in the midst of a step

# Of kinds that differ in what a decode program has: one group and two, norms, biases, formats.
SETTINGS = (
    ("llama", "bf16", None, None),
    ("gpt2", "f32", None, "int8"),
    ("llama", "bf16", "int8", None),
)


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    kind, format, quantization, kv_format = request.param
    folder = checks.write(kind, tmp_path_factory.mktemp("kind"))
    return Setting(folder, 16, None, "native", format, quantization, kv_format)


def workload() -> list[EngineRequest]:
    """Greedy, drawn and truncated rows of many lengths; some end at a stop token."""
    return [
        request("greedy", prompt(1, 37), GREEDY),
        request("short", prompt(2, 3), replace(GREEDY, max_tokens=2)),
        request("drawn", prompt(3, 53), DRAWN),
        request("chat", prompt(4, 16), CHAT),
        request("min p", prompt(5, 33), replace(DRAWN, seed=6, min_p=0.05, max_tokens=23)),
        request("stops", prompt(6, 48), replace(DRAWN, seed=7, stop_token_ids=STOPS)),
        request("late stops", prompt(7, 9), replace(
            CHAT, seed=8, stop_token_ids=STOPS, min_tokens=9)),
        request("choices", prompt(8, 20), replace(CHAT, seed=9, stop_token_ids=STOPS[:4]), n=3),
    ]  # fmt: skip


def one_by_one(setting: Setting, requests: list[EngineRequest]) -> Run:
    """Every request by itself, every token by itself, without the program."""
    built = setting.built()
    built.runner.step.decode_program = None
    return harness.run(built, requests, one_by_one=True)


def still() -> float:
    return 0.0


def tokens_a_row(run: Run) -> list[float]:
    """Of each step that decoded alone."""
    return [s.num_decode_tokens / s.num_rows for s in run.stats if not s.num_prompt_tokens]


def test_the_tokens_are_those_of_single_steps(setting: Setting) -> None:
    requests = workload()
    alone = one_by_one(setting, requests)
    together = harness.run(setting.built(), requests, clock=still)
    harness.assert_equal(together, alone)
    assert max(tokens_a_row(together)) == 16
    assert sum(step.num_discarded_tokens for step in together.stats) > 0
    reasons = [choice.finish_reason for choice in alone.choices.values()]
    assert {FinishReason.STOP, FinishReason.LENGTH} == set(reasons)
    again = harness.run(setting.built(), requests, clock=still, one_by_one=True)
    harness.assert_equal(again, alone)
    assert max(tokens_a_row(again)) == 16


def test_what_was_generated_is_found_again(setting: Setting) -> None:
    """Blocks that several tokens a step have filled are offered to the prefix cache, those behind
    an end are not."""
    requests = [replace(one, n=1) for one in workload()]
    alone = one_by_one(setting, requests)
    later = [
        replace(
            one,
            request_id=f"{one.request_id} later",
            prompt_token_ids=(
                *one.prompt_token_ids,
                *alone.choices[one.request_id, 0].token_ids,
                5,
            ),
        )
        for one in requests
    ]
    both = harness.run(
        setting.built(), [*requests, *later], prefix_caching=True, clock=still, one_by_one=True
    )
    assert both.prefix_hit_tokens > sum(len(one.prompt_token_ids) for one in requests)
    harness.assert_equal(both, one_by_one(setting, [*requests, *later]))


def test_so_are_crowded_and_preempted_ones(setting: Setting) -> None:
    requests = [replace(one, n=1) for one in workload()]
    alone = one_by_one(setting, requests)
    crowded = harness.run(setting.crowded(requests), requests, budget=64, clock=still)
    assert crowded.preemptions > 0
    assert max(tokens_a_row(crowded)) > 1
    harness.assert_equal(crowded, alone)

    def preempt(core: EngineCore, steps: int) -> None:
        running = core.scheduler.state.running
        if running and steps % 2:
            core.scheduler.preempt(running[-1].request.id, 0)

    preempted = harness.run(setting.built(), requests, clock=still, on_step=preempt)
    assert preempted.preemptions > 0
    assert max(tokens_a_row(preempted)) > 1
    harness.assert_equal(preempted, alone)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "granite", "olmo2", "gpt1"])
def test_families_of_other_layers(family: str, tmp_path: Path) -> None:
    """Windows, logits that are scaled or capped, norms of outputs, no norm behind the layers."""
    write_case(CASES[family][0], tmp_path)
    setting = Setting(tmp_path, backend="native")
    requests = [replace(one, n=1) for one in workload()]
    together = harness.run(setting.built(), requests, clock=still)
    assert max(tokens_a_row(together)) > 1
    harness.assert_equal(together, one_by_one(setting, requests))


def test_a_model_whose_table_is_narrower_than_its_state_has_no_program(tmp_path: Path) -> None:
    [case] = [case for case in CASES["opt"] if case.facts.get("word_embed_proj_dim")]
    write_case(case, tmp_path)
    assert Setting(tmp_path, backend="native").built().runner.max_decode_steps(GREEDY) == 1


# -- the runner by itself ----------------------------------------------------------------------


@pytest.fixture
def built(setting: Setting) -> BuiltRunner:
    return setting.built()


def admit(built: BuiltRunner, ids: tuple[int, ...], sampling: SamplingParams) -> StepPlan:
    """A row of two blocks whose prompt is computed, and whose first token is chosen."""
    admitted = AdmittedRow(0, ids, len(ids), 0, sampling, 0, ((3, 4),))
    return StepPlan(0, (PlannedRow(0, len(ids), samples=True),), (admitted,))


def decode(steps: int, num_scheduled: int | None = None) -> StepPlan:
    row = PlannedRow(0, steps if num_scheduled is None else num_scheduled, samples=True)
    return StepPlan(1, (row,), num_decode_steps=steps)


def ran(built: BuiltRunner, plan: StepPlan) -> tuple[tuple[int, ...], bool]:
    result = built.runner.sample(built.runner.forward(plan), None).result()
    return result.rows[0].token_ids, result.rows[0].non_finite


def test_what_a_row_cannot_be_given_is_refused(built: BuiltRunner) -> None:
    ran(built, admit(built, prompt(1, 20), GREEDY))
    with pytest.raises(ValueError, match="row 0 has 2 blocks: too few for its tokens"):
        built.runner.forward(decode(13))
    with pytest.raises(ValueError, match="row 0 is to be given 3 tokens and computes more than"):
        built.runner.forward(replace(decode(3), rows=(PlannedRow(0, 3, samples=False),)))
    assert len(ran(built, decode(12))[0]) == 12


def test_rows_that_need_the_host_are_not_given_several(built: BuiltRunner) -> None:
    runner = built.runner
    assert runner.max_decode_steps(CHAT) == 16
    for asked in (
        {"logprobs": 0},
        {"presence_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"logit_bias": ((3, 1.0),)},
    ):
        assert runner.max_decode_steps(replace(CHAT, **asked)) == 1, asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(runner), "overlaps", property(lambda _: True))
        assert runner.max_decode_steps(CHAT) == 1, "of steps in flight the host knows no tokens"
    ran(built, admit(built, prompt(1, 9), replace(GREEDY, logprobs=1)))
    with pytest.raises(ValueError, match="gives each row 2 tokens, which this runner does not do"):
        runner.forward(decode(2))


def test_tokens_behind_logits_that_are_no_numbers_are_not_given(tmp_path: Path) -> None:
    """A NaN in the embedding of the third token that is chosen."""
    built = Setting(checks.write("bloom", tmp_path), backend="native").built()  # an untied table
    ids = prompt(2, 9)
    sampling = replace(GREEDY, temperature=2.0, seed=3)
    (first,), _ = ran(built, admit(built, ids, sampling))
    tokens, _ = ran(built, decode(8))
    assert tokens[2] not in (*ids, first, *tokens[:2])
    built.runner.decoder.embedding[tokens[2]] = float("nan")
    ran(built, replace(admit(built, ids, sampling), released=(0,)))
    assert ran(built, decode(8)) == (tokens[:3], True)

"""A step that raised, and a row whose logits are no numbers: who ends, and who does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.request import EngineError
from server.engine.results import check_result
from server.engine.step_plan import ExecutorLost, RowResult, StepPlan, StepResult
from tests.engine.engine_story import Story, prompt, solo

pytestmark = pytest.mark.usefixtures("quiet_engine")


@pytest.mark.parametrize("point", ["forward", "sample", "result"])
def test_a_step_that_raised_once_is_done_again_and_nobody_notices(point: str) -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=4)
    story.steps(2)
    story.executor.fail_at = point
    frame = story.step()
    assert frame.choices == ()
    assert story.core.gauges().failed_steps == 1
    assert story.core.gauges().preemptions == 0, "a failure is not counted as a preemption"
    assert story.blocks() == (0, 0, 1, 15), "what earlier steps computed can be found again"
    assert story.queue() == (0, 1, 5)
    story.run()
    assert story.tokens("a") == solo(prompt(3), 4)
    assert story.endings() == [("a", 0, "length")]
    assert story.state.quarantined == {}


def test_a_request_whose_step_raises_twice_ends_with_an_error() -> None:
    story = Story()
    story.ask("a", prompt(3))
    story.executor.fail_always_for = 2
    story.steps(2)
    ending = story.ending("a")
    assert (ending.finish_reason, ending.error_code) == ("error", EngineError.INTERNAL)
    assert ending.error_message == (
        "The model failed twice on a step of this request. Try again later."
    )
    assert story.core.gauges().failed_steps == 2
    assert story.blocks() == (0, 0, 0, 16)
    assert not story.core.has_work


@pytest.mark.parametrize("overlaps", [False, True])
def test_the_one_bad_request_takes_no_other_with_it(overlaps: bool) -> None:
    story = Story(overlaps=overlaps)
    story.ask("good", prompt(3, 100), max_tokens=4)
    story.ask("bad", prompt(3, 200), max_tokens=4, n=2)
    story.ask("good too", prompt(3, 300), max_tokens=4)
    story.executor.fail_always_for = 201
    story.run()
    assert sorted(story.endings()) == [
        ("bad", 0, "error"),
        ("bad", 1, "error"),
        ("good", 0, "length"),
        ("good too", 0, "length"),
    ]
    assert story.tokens("good") == solo(prompt(3, 100), 4)
    assert story.tokens("good too") == solo(prompt(3, 300), 4)


def test_each_request_of_a_failed_step_is_tried_alone_first() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=4)
    story.ask("b", prompt(3, 100), max_tokens=4)
    story.step()
    story.executor.fail_at = "result"
    story.step()
    assert list(story.state.quarantined) == ["a", "b"]
    story.step()
    assert story.chunks() == {0: 4}
    assert list(story.state.quarantined) == ["b"]
    story.step()
    assert [row.num_scheduled_tokens for row in story.plan.rows] == [4]
    assert story.state.quarantined == {}
    story.step()
    assert len(story.plan.rows) == 2


def test_every_row_of_a_failed_step_is_released_again() -> None:
    story = Story()
    story.ask("a", prompt(3))
    story.ask("b", prompt(3, 100))
    story.executor.fail_at = "sample"
    story.steps(2)
    assert story.plan.released == (0, 1)


def test_an_aborted_request_of_a_failed_step_is_no_suspect() -> None:
    story = Story()
    story.ask("a", prompt(3))
    story.executor.fail_at = "result"
    step = story.begin()
    story.core.abort(["a"])
    story.end(step)
    assert story.state.quarantined == {}
    assert story.endings() == [("a", 0, "abort")]
    assert story.blocks() == (0, 0, 0, 16)


def test_a_row_that_is_not_finite_ends_alone() -> None:
    story = Story(poison=(201,))
    story.ask("good", prompt(3, 100), max_tokens=4)
    story.ask("bad", prompt(6, 200), max_tokens=4)
    story.step()
    ending = story.ending("bad")
    assert (ending.finish_reason, ending.error_code) == ("error", EngineError.NON_FINITE)
    assert (ending.token_ids, story.tokens("bad")) == ((), ())
    assert story.blocks() == (1, 0, 0, 15), "nothing that it computed is kept"
    story.run()
    assert story.tokens("good") == solo(prompt(3, 100), 4)
    assert story.core.gauges().failed_steps == 0


def test_every_choice_of_a_poisoned_prompt_ends_with_the_error() -> None:
    story = Story(poison=(201,))
    story.ask("bad", prompt(6, 200), n=3, max_tokens=4)
    story.run()
    assert sorted(story.endings()) == [("bad", choice, "error") for choice in range(3)]
    assert story.blocks() == (0, 0, 0, 16)


@pytest.mark.parametrize("has_scores", [False, True])
def test_a_scored_prompt_that_is_not_finite_ends_with_that_word_and_no_scores(
    has_scores: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story()
    story.ask("bad", prompt(6), prompt_logprobs=0)
    step = story.begin()
    assert step.pending is not None
    result = step.pending.result()
    (row,) = result.rows
    scores = row.prompt_logprobs if has_scores else None
    broken = RowResult(row.row, non_finite=True, prompt_logprobs=scores)
    monkeypatch.setattr(step.pending, "result", lambda: replace(result, rows=(broken,)))
    story.end(step)
    assert story.ending("bad").error_code == EngineError.NON_FINITE
    assert [output.logprobs for output in story.prompts] == [None]
    assert story.core.gauges().failed_steps == 0
    assert story.blocks() == (0, 0, 0, 16)


def test_a_result_that_does_not_answer_its_plan_is_a_failed_step() -> None:
    story = Story()
    story.ask("a", prompt(3))
    step = story.begin()
    assert step.pending is not None
    result = step.pending.result()
    (row,) = result.rows
    for wrong, problem in (
        (replace(result, step_id=7), "result of step 7 came for step 0"),
        (replace(result, rows=()), "rows are not those"),
        (replace(result, rows=(replace(row, row=1),)), "rows are not those"),
        (replace(result, rows=(replace(row, token_ids=()),)), "gave 0 tokens, not 1"),
        (replace(result, rows=(replace(row, token_ids=(1, 2)),)), "gave 2 tokens, not 1"),
    ):
        with pytest.raises(ValueError, match=problem):
            check_result(step.plan, wrong)
    check_result(step.plan, result)


def test_a_wrong_result_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story()
    story.ask("a", prompt(3))
    sample = story.executor.sample

    class Wrong:
        def result(self) -> StepResult:
            return StepResult(99, ())

    def once(handle: StepPlan, masks: dict[int, bytes] | None) -> Wrong:
        sample(handle, masks)
        monkeypatch.undo()
        return Wrong()

    monkeypatch.setattr(story.executor, "sample", once)
    story.run()
    assert story.core.gauges().failed_steps == 1
    assert story.tokens("a") == solo(prompt(3), 2)


@pytest.mark.parametrize("late", [False, True])
def test_an_executor_that_is_lost_ends_the_loop(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step could succeed again, so the process has to end and be started anew."""
    story = Story(overlaps=True)
    story.ask("a", prompt(3))

    def lost(*_: object) -> None:
        raise ExecutorLost("the device is gone")

    if late:
        step = story.begin()
        monkeypatch.setattr(step.pending, "result", lost)
    else:
        monkeypatch.setattr(story.executor, "forward", lost)
    with pytest.raises(ExecutorLost):
        story.core.step()

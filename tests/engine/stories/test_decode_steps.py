"""Steps that give each row several tokens."""

from __future__ import annotations

import pytest

from server.engine.decode_pace import MOST_SECONDS, DecodePace
from server.engine.request import FinishReason
from server.engine.results import check_result
from server.engine.step_plan import PlannedRow, RowResult, StepPlan, StepResult
from tests.engine.engine_story import Story, prompt, solo


def steps_of(story: Story) -> list[int]:
    return [plan.num_decode_steps for plan in story.executor.plans]


def test_all_rows_get_as_many_as_the_one_that_wants_fewest() -> None:
    story = Story(decode_steps=16)
    story.ask("a", prompt(3), max_tokens=12)
    story.ask("b", prompt(2), max_tokens=5)
    story.run()
    assert steps_of(story) == [1, 1, 3, 7]  # of the first two nothing is known before
    assert [row.num_scheduled_tokens for row in story.executor.plans[2].rows] == [3, 3]
    told = [output.token_ids for output in story.choices if output.request_id == "b"]
    assert [len(token_ids) for token_ids in told] == [1, 1, 3]


def test_who_waits_is_waited_for_one_token_at_a_time() -> None:
    story = Story(decode_steps=16, max_num_seqs=1)
    story.ask("a", prompt(3), max_tokens=6)
    story.ask("b", prompt(3), max_tokens=6)
    story.run()
    assert steps_of(story) == [1] * 6 + [1, 5]


def test_a_step_keeps_to_its_budget_of_tokens() -> None:
    story = Story(decode_steps=16, max_num_batched_tokens=7)
    story.ask("a", prompt(2), max_tokens=9)
    story.ask("b", prompt(2), max_tokens=9)
    story.run()
    assert max(plan.num_tokens for plan in story.executor.plans) == 6
    assert steps_of(story) == [1, 1, 3, 3, 1]


def test_end_ids_that_are_forbidden_yet_are_asked_for_one_by_one() -> None:
    story = Story(decode_steps=16)
    story.ask("a", prompt(2), max_tokens=9, min_tokens=4)
    story.run()
    assert steps_of(story) == [1, 1, 1, 1, 5]


def test_nobody_gives_way_for_more_than_one_token() -> None:
    """Two rows fill six blocks of four tokens: one token at a time as long as both are there."""
    story = Story(decode_steps=16, num_blocks=6)
    story.ask("a", prompt(9), max_tokens=6)
    story.ask("b", prompt(9), max_tokens=6)
    story.run()
    together = [plan.num_decode_steps for plan in story.executor.plans if len(plan.rows) == 2]
    assert len(together) >= 3
    assert set(together) == {1}
    assert story.tokens("a") == solo(prompt(9), 6)


def test_what_lies_behind_an_end_is_discarded_and_not_cached() -> None:
    story = Story(decode_steps=16, num_blocks=32)
    story.ask("first", prompt(4), max_tokens=12)
    story.run()
    tokens = story.tokens("first")
    again = Story(decode_steps=16, num_blocks=32)
    again.ask("a", prompt(4), max_tokens=12, stop_token_ids=(tokens[5],))
    again.run()
    assert again.choices[-1].finish_reason is FinishReason.STOP
    assert again.tokens("a") == tokens[: tokens.index(tokens[5]) + 1]
    assert again.num_discarded == 12 - len(again.tokens("a"))
    kept = sum(len(entry.token_ids) for entry in again.state.kv.cache.entries)
    assert kept == (4 + len(again.tokens("a")) - 1) // 4 * 4


def test_one_that_may_not_overlap_counts_no_step_ahead() -> None:
    story = Story(decode_steps=16, overlaps=True)
    story.ask("a", prompt(2), max_tokens=9)
    story.run()
    assert set(steps_of(story)) == {1}


def test_the_pace_follows_what_a_token_took() -> None:
    pace = DecodePace()
    assert pace.decode_steps == 1, "nothing is known yet"
    one = StepPlan(0, (PlannedRow(0, 1, samples=True), PlannedRow(1, 1, samples=True)))
    pace.note(one, MOST_SECONDS / 8.5)
    assert pace.decode_steps == 8
    pace.note(StepPlan(1, (PlannedRow(0, 40, samples=True),)), 3.0)
    assert pace.decode_steps == 8, "a prompt says nothing of a decode step"
    several = StepPlan(2, (PlannedRow(0, 4, samples=True),), num_decode_steps=4)
    pace.note(several, MOST_SECONDS * 2)
    assert pace.decode_steps == 2
    pace.note(one, 1.0)
    assert pace.decode_steps == 1


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        (RowResult(0, (1, 2, 3)), True),
        (RowResult(0, (1, 2)), False),
        (RowResult(0, (1, 2, 3, 4)), False),
        (RowResult(0, (1, 2), non_finite=True), True),
        (RowResult(0, (1, 2, 3), non_finite=True), False),
        (RowResult(0, (), non_finite=True), True),
    ],
)
def test_a_result_has_as_many_tokens_as_were_planned(row: RowResult, fits: bool) -> None:
    plan = StepPlan(0, (PlannedRow(0, 3, samples=True),), num_decode_steps=3)
    if fits:
        check_result(plan, StepResult(0, (row,)))
        return
    with pytest.raises(ValueError, match="row 0 gave"):
        check_result(plan, StepResult(0, (row,)))

"""Whose turn it is."""

from __future__ import annotations

import pytest

from server.engine.request import EngineError
from tests.engine.engine_story import Story, prompt


def order(story: Story) -> list[str]:
    """Names in the order in which they were first scheduled."""
    return [output.request_id for output in story.prompts if output.queue_seconds is not None]


def test_requests_run_in_the_order_of_their_arrival() -> None:
    story = Story(max_num_seqs=1)
    for name in ("c", "a", "b"):
        story.ask(name, prompt(3))
    story.run()
    assert order(story) == ["c", "a", "b"]
    assert [name for name, _, _ in story.endings()] == ["c", "a", "b"]


def test_a_lower_priority_number_goes_first() -> None:
    story = Story(max_num_seqs=1)
    for name, priority in (("later", 1), ("now", 0), ("first", -1), ("now too", 0)):
        story.ask(name, prompt(3), priority=priority)
    story.run()
    assert order(story) == ["first", "now", "now too", "later"]


@pytest.mark.parametrize(
    ("waited", "expected"),
    [(9.0, ["urgent", "patient"]), (11.0, ["patient", "urgent"])],
)
def test_ten_seconds_of_waiting_are_worth_one_level_of_priority(
    waited: float, expected: list[str]
) -> None:
    story = Story(max_num_seqs=1)
    story.ask("patient", prompt(3), priority=1)
    story.now = waited
    story.ask("urgent", prompt(3), priority=0)
    story.run()
    assert order(story) == expected


def test_urgent_work_does_not_take_the_row_of_what_runs() -> None:
    story = Story(max_num_seqs=1)
    story.ask("runs", prompt(3), max_tokens=4)
    story.step()
    story.ask("urgent", prompt(3, 50), priority=-5)
    story.run()
    assert [name for name, _, _ in story.endings()] == ["runs", "urgent"]
    assert story.core.gauges().preemptions == 0


def test_no_more_sequences_run_than_max_num_seqs() -> None:
    story = Story(max_num_seqs=2)
    for index, name in enumerate("abc"):
        story.ask(name, prompt(3, 1 + 100 * index), max_tokens=1 + index)
    story.step()
    assert story.chunks() == {0: 3, 1: 3}
    assert story.queue() == (1, 1, 3)
    story.step()
    assert story.plan.released == (0,)
    assert [row.row for row in story.plan.admitted] == [0]
    assert story.chunks() == {1: 1, 0: 3}


def test_the_lowest_free_row_is_taken_first() -> None:
    story = Story(max_num_seqs=3)
    for index, name in enumerate("abc"):
        story.ask(name, prompt(3, 1 + 100 * index), max_tokens=9)
    story.step()
    story.core.abort(["c", "a"])
    story.ask("d", prompt(3, 500))
    story.step()
    assert story.sequence("d").row == 0
    assert sorted(story.plan.released) == [0, 2]


def test_nothing_overtakes_a_head_of_the_queue_that_does_not_fit_yet() -> None:
    story = Story(num_blocks=6)
    story.ask("runs", prompt(15), max_tokens=3)
    story.step()
    story.ask("large", prompt(9, 100))
    story.ask("small", prompt(1, 200))
    story.step()
    assert story.queue() == (1, 2, 10)
    story.run()
    assert order(story) == ["runs", "large", "small"]


def test_the_choices_of_a_request_get_their_rows_together() -> None:
    story = Story(max_num_seqs=4)
    story.ask("a", prompt(3), max_tokens=3)
    story.ask("b", prompt(3, 50), max_tokens=9)
    story.step()
    story.ask("three", prompt(3, 100), n=3)
    story.ask("one", prompt(3, 200), n=1)
    story.steps(2)
    assert story.queue() == (1, 2, 6), "one free row is kept for three, whose turn it is"
    story.step()
    assert story.states()["three", 2] == "running"
    assert story.states()["one", 0] == "waiting"


def test_what_waits_past_its_deadline_ends_with_a_word_about_it() -> None:
    story = Story(max_num_seqs=1, queue_timeout_s=5.0)
    story.ask("runs", prompt(3), max_tokens=9)
    story.step()
    story.ask("waits", prompt(3, 100), n=1)
    story.now = 5.0
    story.step()
    assert story.queue() == (1, 1, 3), "the deadline itself is in time"
    story.now = 5.5
    story.step()
    ending = story.ending("waits")
    assert (ending.finish_reason, ending.error_code) == ("error", EngineError.QUEUE_TIMEOUT)
    assert ending.error_message is not None
    assert "waited 5.5 s" in ending.error_message
    assert story.queue() == (1, 0, 0)


def test_a_timeout_ends_every_choice_of_a_request() -> None:
    story = Story(max_num_seqs=2, queue_timeout_s=5.0)
    story.ask("runs", prompt(3), max_tokens=9)
    story.step()
    story.ask("waits", prompt(3, 100), n=2)
    story.now = 6.0
    story.step()
    assert sorted(story.endings()) == [("waits", 0, "error"), ("waits", 1, "error")]


def test_a_request_may_bring_its_own_patience() -> None:
    story = Story(max_num_seqs=1, queue_timeout_s=5.0)
    story.ask("runs", prompt(3), max_tokens=9)
    story.step()
    story.ask("hasty", prompt(3, 100), timeout_s=1.0)
    story.ask("patient", prompt(3, 200), timeout_s=100.0)
    story.now = 10.0
    story.step()
    assert story.endings() == [("hasty", 0, "error")]
    story.run()
    assert story.endings()[1:] == [("runs", 0, "length"), ("patient", 0, "length")]


def test_what_was_scheduled_once_never_times_out() -> None:
    story = Story(queue_timeout_s=5.0)
    story.ask("a", prompt(3), max_tokens=4)
    story.step()
    assert story.core.scheduler.preempt("a", 0)
    story.now = 1000.0
    story.run()
    assert story.endings() == [("a", 0, "length")]

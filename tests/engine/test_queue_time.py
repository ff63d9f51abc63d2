"""What a request is told of its wait."""

from __future__ import annotations

from tests.engine.engine_story import Story, prompt


def oldest_s(story: Story) -> float:
    return story.core.gauges().oldest_queued_at_us / 1e6


def test_the_wait_ends_where_the_prompts_own_step_begins() -> None:
    story = Story(max_num_seqs=1)
    story.core.submit([story.request(name, prompt(3)) for name in ("first", "second")])
    while story.core.has_work:
        story.now += 1.0
        story.step()
    waited = [(told.request_id, told.queue_seconds) for told in story.prompts]
    assert waited == [("first", 1.0), ("second", 3.0)]
    assert [seconds for stats in story.stats for seconds in stats.queue_seconds] == [1.0, 3.0]


def test_the_oldest_in_the_queue_is_the_first_that_came_and_has_not_run() -> None:
    story = Story(max_num_seqs=1)
    story.now = 5.0
    assert oldest_s(story) == 0
    for name, priority in (("first", 0), ("second", 1), ("third", 0)):
        story.ask(name, prompt(3), max_tokens=8, priority=priority)
        story.now += 1.0
    assert oldest_s(story) == 5.0
    story.step()  # there is one row, and the first takes it
    assert oldest_s(story) == 6.0
    story.core.abort(["second"])
    assert oldest_s(story) == 7.0
    story.core.abort(["first", "third"])
    assert oldest_s(story) == 0


def test_who_ran_and_was_preempted_is_not_the_oldest_in_the_queue() -> None:
    story = Story(num_blocks=4, max_num_seqs=2, max_model_len=16)
    story.now = 5.0
    story.core.submit([story.request(name, prompt(3), max_tokens=10) for name in ("one", "two")])
    while not story.core.gauges().sequences_preempted:
        story.step()
    assert story.core.gauges().requests_waiting == 1
    assert oldest_s(story) == 0
    story.now = 9.0
    story.ask("third", prompt(3), max_tokens=10)
    assert oldest_s(story) == 9.0

"""What is refused at the door, with which code and which numbers."""

from __future__ import annotations

from typing import Any

import pytest

from server.engine.events import Refused
from server.engine.request import EngineError, Task
from tests.engine.engine_story import Story, prompt


def refusal(story: Story, tokens: tuple[int, ...], **wishes: Any) -> Refused:
    """The one word about a request, which leaves no trace in the engine."""
    before = (story.queue(), story.blocks())
    story.ask("refused", tokens, **wishes)
    assert (story.queue(), story.blocks()) == before
    assert "refused" not in story.state.requests
    (told,) = story.step().refused
    assert told.request_ids == ("refused",)
    return told


@pytest.mark.parametrize("task", sorted(set(Task) - {Task.GENERATE}))
def test_a_task_that_the_model_does_not_support(task: Task) -> None:
    told = refusal(Story(), prompt(3), task=task)
    assert (told.code, told.retry_after) == (EngineError.UNSUPPORTED_TASK, None)
    assert told.message == f"This model does not support the task {task}; it supports generate."


def test_a_task_is_held_against_what_the_executor_states() -> None:
    story = Story(tasks=frozenset({Task.SCORE, Task.EMBED}))
    told = refusal(story, prompt(3))
    assert told.code == EngineError.UNSUPPORTED_TASK
    assert told.message.endswith("the task generate; it supports embed, score.")
    story.ask("supported", prompt(3), task=Task.EMBED)
    assert story.step().accepted[0].request_ids == ("supported",)


def test_more_choices_than_rows() -> None:
    told = refusal(Story(max_num_seqs=2), prompt(3), n=3)
    assert (told.code, told.retry_after) == (EngineError.CAPACITY, None)
    assert told.message == "n is 3; this server runs 1 to 2 sequences at a time."


def test_no_tokens_at_all() -> None:
    assert refusal(Story(), ()).code == EngineError.INVALID_REQUEST


def test_more_tokens_than_the_context_has() -> None:
    told = refusal(Story(max_model_len=10), prompt(7), max_tokens=4)
    assert (told.code, told.retry_after) == (EngineError.CONTEXT_LENGTH, None)
    for number in ("7 tokens", "max_tokens is 4", "10 tokens"):
        assert number in told.message


def test_more_blocks_than_the_whole_cache_has() -> None:
    told = refusal(Story(num_blocks=3), prompt(10), max_tokens=3)
    assert told.code == EngineError.CAPACITY
    for number in ("10 tokens", "max_tokens is 3", "4 KV-cache blocks", "has 3 (12 tokens)"):
        assert number in told.message


def test_what_fits_the_cache_to_the_last_slot_is_served() -> None:
    story = Story(num_blocks=3)
    story.ask("a", prompt(10), max_tokens=2)
    story.run()
    assert story.endings() == [("a", 0, "length")]


def test_two_groups_need_twice_the_blocks() -> None:
    told = refusal(Story(num_blocks=3, windows=(None, None)), prompt(4), max_tokens=1)
    assert "need 4 KV-cache blocks, and the cache has 3 (4 tokens)" in told.message


def test_a_prompt_larger_than_the_queue_could_ever_hold() -> None:
    told = refusal(Story(max_queued_tokens=5), prompt(6))
    assert (told.code, told.retry_after) == (EngineError.CAPACITY, None)
    assert told.message == "The prompt has 6 tokens; the queue holds at most 5."


def test_a_queue_full_of_requests_says_when_to_come_again() -> None:
    story = Story(max_queued_requests=2)
    for name in ("a", "b"):
        story.ask(name, prompt(3))
    told = refusal(story, prompt(3))
    assert (told.code, told.retry_after) == (EngineError.QUEUE_FULL, 1)
    assert told.message == (
        "The queue is full: 2 requests with 6 tokens wait, and at most 2 requests with "
        "512 tokens may. Try again later."
    )


def test_a_queue_full_of_tokens_refuses_what_would_overflow_it_and_takes_what_fits() -> None:
    story = Story(max_queued_tokens=8)
    story.ask("a", prompt(5))
    story.ask("too much", prompt(4, 100))
    story.ask("fits", prompt(3, 100))
    frame = story.step()
    assert [told.request_ids for told in frame.refused] == [("too much",)]
    assert [told.request_ids for told in frame.accepted] == [("a",), ("fits",)]


def test_what_runs_does_not_count_as_queued() -> None:
    story = Story(max_queued_requests=1)
    for index, name in enumerate("abc"):
        story.ask(name, prompt(3, 1 + 100 * index), max_tokens=9)
        story.step()
    assert story.refused == []
    assert story.queue() == (3, 0, 0)


def test_what_was_preempted_takes_no_place_of_the_queue() -> None:
    story = Story(max_queued_requests=1)
    story.ask("a", prompt(3), max_tokens=9)
    story.step()
    assert story.core.scheduler.preempt("a", 0)
    story.ask("b", prompt(3, 100))
    story.run()
    assert story.refused == []


def test_the_wait_that_is_told_follows_the_recent_rate() -> None:
    """10 tokens took 5 s; the 7 that wait take 4 s, rounded up."""
    story = Story(max_queued_requests=1, max_num_seqs=1)
    story.ask("a", prompt(10), max_tokens=9)
    step = story.begin()
    story.now = 5.0
    story.end(step)
    story.ask("waits", prompt(7, 100))
    assert refusal(story, prompt(3)).retry_after == 4


def test_a_failed_step_computed_nothing_in_its_time() -> None:
    story = Story(max_queued_tokens=9)
    story.ask("a", prompt(7), max_tokens=9)
    for fails in (False, True):
        story.executor.fail_at = "result" if fails else ""
        step = story.begin()
        story.now += 2.0
        story.end(step)
    story.ask("waits", prompt(7, 100))
    # 7 tokens went through in the 4 seconds of two steps; 7 wait.
    told = refusal(story, prompt(3))
    assert told.retry_after == 4


def test_a_list_is_refused_whole_for_one_that_could_never_run() -> None:
    story = Story(max_model_len=10)
    story.core.submit(
        [story.request("small", prompt(3)), story.request("large", prompt(9), max_tokens=2)]
    )
    frame = story.step()
    assert [told.request_ids for told in frame.refused] == [("small", "large")]
    assert frame.refused[0].code == EngineError.CONTEXT_LENGTH
    assert (frame.accepted, story.queue()) == ((), (0, 0, 0))


def test_a_list_is_refused_whole_where_the_queue_has_room_for_a_part() -> None:
    story = Story(max_queued_requests=2)
    story.ask("a", prompt(3))
    story.core.submit([story.request(name, prompt(3)) for name in ("b", "c")])
    frame = story.step()
    assert [told.request_ids for told in frame.accepted] == [("a",)]
    assert [(told.request_ids, told.code) for told in frame.refused] == [
        (("b", "c"), EngineError.QUEUE_FULL)
    ]


def test_a_list_longer_than_the_queue_is_told_never_to_come_again() -> None:
    story = Story(max_queued_requests=2)
    story.core.submit([story.request(name, prompt(3)) for name in "abc"])
    (told,) = story.step().refused
    assert (told.code, told.retry_after) == (EngineError.CAPACITY, None)
    assert told.message == "The list has 3 prompts; the queue holds at most 2 requests."


def test_a_list_with_more_tokens_than_the_queue_is_told_never_to_come_again() -> None:
    story = Story(max_queued_tokens=10)
    story.core.submit([story.request(name, prompt(4)) for name in "abc"])
    (told,) = story.step().refused
    assert (told.code, told.retry_after) == (EngineError.CAPACITY, None)
    assert told.message == "The list has 12 prompt tokens; the queue holds at most 10."


def test_an_id_in_use_is_refused_and_its_owner_notices_nothing() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=3)
    story.step()
    story.ask("a", prompt(9, 100))
    story.core.submit([story.request("b", prompt(3)), story.request("b", prompt(3))])
    frame = story.step()
    assert [told.code for told in frame.refused] == [EngineError.INTERNAL, EngineError.INTERNAL]
    story.run()
    assert story.endings() == [("a", 0, "length")]


def test_a_draining_engine_refuses_all_and_serves_what_it_has() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=3)
    story.core.drain()
    assert story.core.gauges().draining == 1
    told = refusal(story, prompt(3))
    assert (told.code, told.retry_after) == (EngineError.SHUTTING_DOWN, None)
    story.run()
    assert story.endings() == [("a", 0, "length")]


def test_an_empty_list_is_no_request() -> None:
    story = Story()
    story.core.submit([])
    assert not story.core.has_work


@pytest.mark.parametrize("name", ["max_num_seqs", "max_logit_rows", "max_queued_tokens"])
def test_a_limit_below_one_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        Story(**dict[str, Any]({name: 0}))


def test_a_negative_number_of_preemptions_is_refused() -> None:
    with pytest.raises(ValueError, match="max_preemptions is -1"):
        Story(max_preemptions=-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1e-38),
        ("repetition_penalty", 101.0),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", -2.1),
        ("presence_penalty", 1e30),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("min_p", float("nan")),
        ("logit_bias", ((3, 1e38),)),
    ],
)
def test_a_number_that_would_leave_float32(name: str, value: Any) -> None:
    told = refusal(Story(), prompt(3), **{name: value})
    assert told.code == EngineError.INVALID_VALUE
    assert told.message.startswith(name)
    assert "a finite number" in told.message


@pytest.mark.parametrize(
    "edges",
    [
        {"repetition_penalty": 0.01, "frequency_penalty": -2.0, "presence_penalty": -2.0},
        {"repetition_penalty": 100.0, "frequency_penalty": 2.0, "presence_penalty": 2},
        {
            "temperature": 2.0,
            "top_p": 1e-300,
            "min_p": 1.0,
            "logit_bias": ((1, -100.0), (2, 100.0)),
        },
    ],
)
def test_numbers_at_the_edges_of_their_ranges_are_served(edges: dict[str, Any]) -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=2, **edges)
    story.run()
    assert story.endings() == [("a", 0, "length")]

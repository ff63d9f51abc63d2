"""What there is no memory for: an answer is refused with the figure, a step ends one request."""

from __future__ import annotations

import pytest

from server.engine.request import AnswerLimits, EngineError
from server.engine.response_budget import answer_size
from server.engine.step_plan import StepOutOfMemory, StepPlan
from tests.engine.engine_story import Story, prompt, solo

COST = AnswerLimits(max_bytes=10_000, token_bytes=10, logprob_bytes=100)


pytestmark = pytest.mark.usefixtures("quiet_engine")


def fail(story: Story, *rows: int, times: int = 1) -> None:
    """The next steps find no memory for these rows' work."""
    forward, left = story.executor.forward, [times]

    def short(plan: StepPlan) -> StepPlan:
        handle = forward(plan)
        if left[0]:
            left[0] -= 1
            raise StepOutOfMemory(rows, "the allocator says no")
        return handle

    story.executor.forward = short  # type: ignore[method-assign]


# -- at the door -----------------------------------------------------------------------------


def test_an_answer_is_what_all_choices_can_come_to() -> None:
    request = Story.request("a", prompt(5), n=3, max_tokens=4, logprobs=2, prompt_logprobs=2)
    size = answer_size(request)
    assert (size.tokens, size.numbers) == (3 * 9, 3 * (4 * 3 + 5 * 3))
    assert size.nbytes(COST) == 27 * 10 + 81 * 100
    plain = answer_size(Story.request("a", prompt(5), n=2, max_tokens=4))
    assert (plain.tokens, plain.numbers) == (18, 0)
    chosen = answer_size(Story.request("a", prompt(5), max_tokens=4, logprobs=0))
    assert (chosen.tokens, chosen.numbers) == (9, 4)


def test_an_answer_that_the_host_can_never_hold_is_refused_with_the_figure() -> None:
    story = Story(answers=COST)
    story.ask("large", prompt(12), n=4, max_tokens=3, prompt_logprobs=1)
    frame = story.step()
    (told,) = frame.refused
    assert told.code == EngineError.CAPACITY
    # 4 x 15 tokens x 10 bytes, 4 x 12 x 2 numbers x 100 bytes
    for figure in ("60 tokens", "96 log-probabilities", "10200 bytes", "keeps 10000"):
        assert figure in told.message, told.message
    story.ask("fits", prompt(12), n=4, max_tokens=2, logprobs=1)
    story.run()
    assert story.endings()


def test_a_list_of_prompts_counts_whole() -> None:
    story = Story(answers=COST)
    one = [
        Story.request(f"{i}", prompt(8, 20 * i), max_tokens=4, prompt_logprobs=9) for i in (1, 2)
    ]
    story.core.submit(one)
    (told,) = story.step().refused
    assert told.request_ids == ("1", "2")
    assert "16240 bytes" in told.message
    story.core.submit(one[:1])
    story.run()
    assert story.ending("1").finish_reason == "length"


def test_an_answer_that_others_leave_no_room_for_is_refused_until_they_end() -> None:
    story = Story(answers=COST)
    story.ask("first", prompt(6), max_tokens=4, prompt_logprobs=9)
    story.step()
    story.ask("second", prompt(6, 100), max_tokens=4, prompt_logprobs=9)
    (told,) = story.step().refused
    assert told.code == EngineError.QUEUE_FULL
    assert told.retry_after is not None
    assert "6100 bytes" in told.message
    assert "keeps 10000" in told.message
    story.run()
    story.ask("second", prompt(6, 100), max_tokens=4, prompt_logprobs=9)
    story.run()
    assert story.ending("second").finish_reason == "length"


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_more_alternatives_than_the_buffers_hold_are_refused(name: str) -> None:
    story = Story(max_logprobs=5)
    story.ask("a", prompt(3), **{name: 6})
    (told,) = story.step().refused
    assert told.code == EngineError.CAPACITY
    for figure in (f"{name} is 6", "56 bytes", "hold 48", "at most 5"):
        assert figure in told.message
    story.ask("b", prompt(3), **{name: 5})
    story.run()
    assert story.ending("b").finish_reason == "length"


def test_what_the_cache_cannot_hold_is_told_in_bytes() -> None:
    story = Story(num_blocks=3, max_model_len=100)
    story.ask("a", prompt(10), max_tokens=3)
    (told,) = story.step().refused
    assert "128 bytes of 96" in told.message  # 4 blocks of 4 tokens of 8 bytes


# -- at run time -----------------------------------------------------------------------------


@pytest.mark.parametrize("overlaps", [False, True])
def test_the_request_whose_work_it_was_ends_at_once_and_the_others_go_on(overlaps: bool) -> None:
    story = Story(overlaps=overlaps)
    story.ask("good", prompt(3, 100), max_tokens=4)
    story.ask("bad", prompt(6, 200), max_tokens=4, n=2)
    fail(story, 1)
    story.run()
    assert sorted(story.endings()) == [
        ("bad", 0, "error"),
        ("bad", 1, "error"),
        ("good", 0, "length"),
    ]
    assert story.ending("bad").error_code == EngineError.OUT_OF_MEMORY
    message = story.ending("bad").error_message or ""
    assert "6 tokens and 1 rows of logits" in message
    assert story.tokens("good") == solo(prompt(3, 100), 4)
    (shortage,) = story.shortages
    assert (shortage.asked, shortage.ended) == (("bad",), ("bad",))
    assert (shortage.num_rows, shortage.num_tokens) == (2, 9)
    assert shortage.reason == "the allocator says no"


def test_work_of_everybody_costs_nobody_when_each_fits_alone() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=4)
    story.ask("b", prompt(3, 100), max_tokens=4)
    fail(story)
    story.step()
    assert list(story.state.quarantined) == ["a", "b"]
    story.run()
    assert [shortage.ended for shortage in story.shortages] == [()]
    assert story.tokens("a") == solo(prompt(3), 4)
    assert story.tokens("b") == solo(prompt(3, 100), 4)


def test_who_finds_no_memory_alone_ends() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=4)
    story.ask("b", prompt(3, 100), max_tokens=4)
    fail(story, times=2)
    story.run()
    assert [shortage.ended for shortage in story.shortages] == [(), ("a",)]
    assert story.tokens("b") == solo(prompt(3, 100), 4)


def test_the_second_time_the_one_that_asks_for_most_ends() -> None:
    """Else requests that fit alone and never together would be tried for ever."""
    story = Story()
    story.ask("small", prompt(3), max_tokens=6)
    story.ask("large", prompt(9, 100), max_tokens=6, prompt_logprobs=0)
    fail(story)
    story.steps(3)  # fails, then each alone
    fail(story)
    story.run()
    assert [shortage.ended for shortage in story.shortages] == [(), ("large",)]
    assert story.tokens("small") == solo(prompt(3), 6)


def test_a_request_that_ended_meanwhile_is_not_ended_again() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=4)
    fail(story, 0)
    step = story.begin()
    story.core.abort(["a"])
    story.end(step)
    assert story.endings() == [("a", 0, "abort")]
    assert [(shortage.asked, shortage.ended) for shortage in story.shortages] == [((), ())]
    assert story.blocks() == (0, 0, 0, 16)

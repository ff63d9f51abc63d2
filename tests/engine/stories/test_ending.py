"""What ends a choice, and which word it ends with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.engine_story import Story, prompt, solo

SAID = solo(prompt(3), 6)  # what follows prompt(3); no id comes twice


def test_the_six_tokens_of_these_stories_are_six() -> None:
    assert len(set(SAID)) == 6


@pytest.mark.parametrize(
    ("limits", "wishes", "said", "reason", "stop_id"),
    [
        ({}, {"max_tokens": 4}, SAID[:4], "length", None),
        ({"max_model_len": 7}, {"max_tokens": 4}, SAID[:4], "length", None),
        ({"eos_token_ids": (SAID[2],)}, {"max_tokens": 6}, SAID[:3], "stop", SAID[2]),
        ({"eos_token_ids": (SAID[4], SAID[1])}, {"max_tokens": 6}, SAID[:2], "stop", SAID[1]),
        ({"eos_token_ids": (SAID[2],)}, {"max_tokens": 3}, SAID[:3], "stop", SAID[2]),
        (
            {"eos_token_ids": (SAID[2],)},
            {"max_tokens": 6, "ignore_eos": True},
            SAID,
            "length",
            None,
        ),
        ({"eos_token_ids": (2,)}, {"max_tokens": 2}, SAID[:2], "length", None),
    ],
    ids=[
        *("max_tokens", "the last token of the context", "the end of sequence"),
        *("one of several ends", "the end as the last allowed token", "an end that is ignored"),
        "an end id within the prompt",
    ],
)
def test_what_ends_a_choice_and_the_word_for_it(
    limits: dict[str, Any],
    wishes: dict[str, Any],
    said: tuple[int, ...],
    reason: str,
    stop_id: int | None,
) -> None:
    story = Story(**limits)
    story.ask("a", prompt(3), **wishes)
    story.run()
    assert story.tokens("a") == said
    ending = story.ending("a")
    assert (ending.finish_reason, ending.stop_token_id) == (reason, stop_id)
    assert ending.token_ids == said[-1:], "the last token and the end come together"


def test_a_stop_id_of_the_request_ends_it_and_no_other() -> None:
    story = Story()
    story.ask("stops", prompt(3), max_tokens=6, stop_token_ids=(SAID[3],), ignore_eos=True)
    story.ask("runs on", prompt(3), max_tokens=6)
    story.run()
    assert story.tokens("stops") == SAID[:4]
    assert story.ending("stops").stop_token_id == SAID[3]
    assert story.tokens("runs on") == SAID


@pytest.mark.parametrize(("min_tokens", "flags"), [(0, (0, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1))])
def test_ends_are_forbidden_for_exactly_the_first_min_tokens(
    min_tokens: int, flags: tuple[int, ...]
) -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=3, min_tokens=min_tokens)
    story.run()
    told = tuple(int(plan.rows[0].min_tokens_pending) for plan in story.executor.plans)
    assert told == flags


def test_min_tokens_are_forbidden_only_where_a_token_is_sampled() -> None:
    story = Story(max_num_batched_tokens=2)
    story.ask("a", prompt(3), max_tokens=2, min_tokens=1)
    story.run()
    told = [row.min_tokens_pending for plan in story.executor.plans for row in plan.rows]
    assert told == [False, True, False]


@pytest.mark.parametrize(("min_tokens", "length"), [(2, 3), (3, 6)])
def test_an_end_comes_through_right_after_min_tokens_others(min_tokens: int, length: int) -> None:
    """The model would say its end as third token; forbidden there, it says something else."""
    story = Story(eos_token_ids=(SAID[2],))
    story.ask("a", prompt(3), max_tokens=6, min_tokens=min_tokens)
    story.run()
    assert len(story.tokens("a")) == length
    assert story.tokens("a")[:2] == SAID[:2]
    assert (SAID[2] in story.tokens("a")) == (min_tokens == 2)


def test_max_tokens_0_computes_the_prompt_and_says_nothing() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(6), max_tokens=0)
    story.steps(2)
    assert [row.samples for plan in story.executor.plans for row in plan.rows] == [False, False]
    assert (story.tokens("a"), story.endings()) == ((), [("a", 0, "length")])
    assert story.blocks() == (0, 0, 1, 15)
    assert not story.core.has_work


def test_finish_ends_a_choice_in_silence_and_frees_its_blocks() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=9)
    story.steps(3)
    story.core.finish("a", 0, 2)
    assert story.blocks() == (0, 0, 1, 15)
    assert story.core.step() is None
    assert (story.endings(), story.tokens("a")) == ([], SAID[:3])


def test_finish_while_a_step_is_in_flight_drops_the_token_on_its_way() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=9)
    story.steps(2)
    step = story.begin()
    story.core.finish("a", 0, 2)
    assert story.blocks() == (0, 2, 0, 14)
    frame = story.end(step)
    assert frame.choices == ()
    assert story.num_discarded == 1
    assert story.blocks() == (0, 0, 1, 15), "the block of four computed tokens can be found"


@pytest.mark.parametrize(("taken", "discarded"), [(4, 0), (3, 1), (1, 3), (9, 0)])
def test_tokens_after_a_stop_string_are_counted_once_the_engine_hears_of_it(
    taken: int, discarded: int
) -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=9)
    story.ask("b", prompt(3, 100), max_tokens=9)
    story.steps(4)
    story.core.finish("a", 0, taken)
    story.core.finish("a", 0, taken)
    story.step()
    assert story.stats[-1].num_discarded_tokens == discarded
    story.run()
    assert story.num_discarded == discarded


def test_finish_that_crosses_the_engines_own_finish_changes_nothing() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=2)
    story.ask("b", prompt(3, 100), max_tokens=4)
    story.steps(2)
    assert story.endings() == [("a", 0, "length")]
    blocks = story.blocks()
    story.core.finish("a", 0, 2)
    story.core.finish("a", 5, 0)
    story.core.finish("b", 1, 0)
    assert story.blocks() == blocks
    story.run()
    assert story.endings() == [("a", 0, "length"), ("b", 0, "length")]

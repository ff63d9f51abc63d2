"""What ends a choice, and which word it ends with."""

from __future__ import annotations

import pytest

from tests.engine.engine_story import Story, prompt, solo

SAID = solo(prompt(3), 6)  # what follows prompt(3); no id comes twice


def test_the_six_tokens_of_these_stories_are_six() -> None:
    assert len(set(SAID)) == 6


def test_max_tokens_ends_with_length_and_no_stop_id() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=4)
    story.run()
    assert story.tokens("a") == SAID[:4]
    ending = story.ending("a")
    assert (ending.finish_reason, ending.stop_token_id) == ("length", None)
    assert ending.token_ids == SAID[3:4], "the last token and the end come together"


def test_the_context_of_the_model_may_be_filled_to_the_last_token() -> None:
    story = Story(max_model_len=7)
    story.ask("a", prompt(3), max_tokens=4)
    story.run()
    assert story.tokens("a") == SAID[:4]
    assert story.endings() == [("a", 0, "length")]


def test_the_end_of_sequence_id_ends_with_stop_and_is_told() -> None:
    story = Story(eos_token_ids=(SAID[2],))
    story.ask("a", prompt(3), max_tokens=6)
    story.run()
    assert story.tokens("a") == SAID[:3]
    ending = story.ending("a")
    assert (ending.finish_reason, ending.stop_token_id) == ("stop", SAID[2])


def test_each_of_several_end_of_sequence_ids_ends() -> None:
    story = Story(eos_token_ids=(SAID[4], SAID[1]))
    story.ask("a", prompt(3), max_tokens=6)
    story.run()
    assert story.tokens("a") == SAID[:2]


def test_a_request_that_ignores_the_end_of_sequence_runs_on() -> None:
    story = Story(eos_token_ids=(SAID[2],))
    story.ask("a", prompt(3), max_tokens=6, ignore_eos=True)
    story.run()
    assert story.tokens("a") == SAID
    assert story.endings() == [("a", 0, "length")]


def test_a_stop_id_of_the_request_ends_it_and_no_other() -> None:
    story = Story()
    story.ask("stops", prompt(3), max_tokens=6, stop_token_ids=(SAID[3],), ignore_eos=True)
    story.ask("runs on", prompt(3), max_tokens=6)
    story.run()
    assert story.tokens("stops") == SAID[:4]
    assert story.ending("stops").stop_token_id == SAID[3]
    assert story.tokens("runs on") == SAID


def test_the_end_of_sequence_as_the_last_allowed_token_ends_with_stop() -> None:
    story = Story(eos_token_ids=(SAID[2],))
    story.ask("a", prompt(3), max_tokens=3)
    story.run()
    assert story.endings() == [("a", 0, "stop")]


def test_a_stop_id_within_the_prompt_ends_nothing() -> None:
    story = Story(eos_token_ids=(2,))
    story.ask("a", prompt(3), max_tokens=2)
    story.run()
    assert story.endings() == [("a", 0, "length")]


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

"""Log-probabilities of the prompt: every token scored once, in whatever pieces fit."""

from __future__ import annotations

import pytest

from tests.engine.engine_story import Story, own_logprobs, prompt, prompt_scores, solo


def scores(story: Story, name: str = "a") -> list[tuple[int, float]]:
    """All that the request was sent, in order; the pieces meet without gap or overlap."""
    told: list[tuple[int, float]] = []
    for output in story.prompts:
        if output.request_id == name and output.logprobs is not None:
            assert output.first_position == len(told) + 1
            told += own_logprobs(output.logprobs)
    return told


def test_a_prompt_is_scored_from_its_second_token_on() -> None:
    story = Story()
    story.ask("a", prompt(6), prompt_logprobs=0)
    story.step()
    (planned,) = story.plan.rows
    assert (planned.num_scheduled_tokens, planned.num_prompt_logits, planned.samples) == (
        6,
        5,
        True,
    )
    assert scores(story) == prompt_scores(prompt(6))
    story.run()
    assert story.tokens("a") == solo(prompt(6), 2)


@pytest.mark.parametrize(
    ("max_logit_rows", "pieces"),
    [
        (64, [(6, 5, True)]),
        (6, [(6, 5, True)]),
        (5, [(5, 5, False), (1, 0, True)]),
        (4, [(4, 4, False), (2, 1, True)]),
        (2, [(2, 2, False), (2, 2, False), (2, 1, True)]),
        (1, [(1, 1, False)] * 5 + [(1, 0, True)]),
    ],
)
def test_few_rows_of_logits_cut_a_scored_prompt(
    max_logit_rows: int, pieces: list[tuple[int, int, bool]]
) -> None:
    story = Story(max_logit_rows=max_logit_rows)
    story.ask("a", prompt(6), max_tokens=1, prompt_logprobs=0)
    story.run()
    planned = [plan.rows[0] for plan in story.executor.plans]
    assert [
        (row.num_scheduled_tokens, row.num_prompt_logits, row.samples) for row in planned
    ] == pieces
    assert scores(story) == prompt_scores(prompt(6))


def test_few_rows_of_logits_do_not_cut_a_prompt_that_is_not_scored() -> None:
    story = Story(max_logit_rows=1)
    story.ask("a", prompt(20), max_tokens=1)
    story.step()
    assert story.chunks() == {0: 20}


def test_alternatives_come_in_the_width_that_was_asked() -> None:
    story = Story()
    story.ask("a", prompt(6), prompt_logprobs=3, logprobs=2)
    story.run()
    (scored,) = (output.logprobs for output in story.prompts if output.logprobs is not None)
    assert (scored.num_positions, scored.width) == (5, 4)
    widths = [(o.logprobs.num_positions, o.logprobs.width) for o in story.choices if o.logprobs]
    assert widths == [(1, 3), (1, 3)]


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    story = Story()
    story.ask("a", prompt(1), prompt_logprobs=0)
    story.run()
    assert scores(story) == []
    assert story.tokens("a") == solo(prompt(1), 2)


def test_scoring_alone_ends_with_the_last_prompt_token() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(6), max_tokens=0, prompt_logprobs=0)
    story.run()
    assert scores(story) == prompt_scores(prompt(6))
    assert (story.tokens("a"), story.endings()) == ((), [("a", 0, "length")])


def test_many_choices_score_their_one_prompt_once() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(6), n=3, prompt_logprobs=0)
    story.run()
    assert scores(story) == prompt_scores(prompt(6))


def test_two_prompts_share_the_rows_of_logits() -> None:
    story = Story(max_logit_rows=8)
    story.ask("a", prompt(6), max_tokens=1, prompt_logprobs=0)
    story.ask("b", prompt(6, 100), max_tokens=1, prompt_logprobs=0)
    story.step()
    assert [row.num_prompt_logits + row.samples for row in story.plan.rows] == [6, 2]
    story.run()
    assert scores(story) == prompt_scores(prompt(6))
    assert scores(story, "b") == prompt_scores(prompt(6, 100))


def test_a_failed_step_scores_nothing_twice() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(10), prompt_logprobs=0)
    story.step()
    story.executor.fail_at = "result"
    story.run()
    assert scores(story) == prompt_scores(prompt(10))


def test_what_was_scored_before_a_preemption_may_be_read_from_the_cache() -> None:
    story = Story(max_num_batched_tokens=8)
    story.ask("a", prompt(14), prompt_logprobs=0, max_tokens=3)
    story.step()
    assert story.core.scheduler.preempt("a", 0)
    story.step()
    (again,) = story.plan.admitted
    assert again.num_computed_tokens == 8, "eight positions were scored and are cached"
    assert story.core.scheduler.preempt("a", 0)
    story.run()
    assert scores(story) == prompt_scores(prompt(14))
    assert story.tokens("a") == solo(prompt(14), 3)


def test_a_prompt_all_scored_resumes_from_the_whole_cached_prefix() -> None:
    story = Story()
    story.ask("a", prompt(9), prompt_logprobs=0, max_tokens=3)
    story.step()
    assert story.core.scheduler.preempt("a", 0)
    story.step()
    assert [row.num_computed_tokens for row in story.plan.admitted] == [8]


def test_a_large_scored_prompt_leaves_each_running_sequence_its_row_of_logits() -> None:
    story = Story(max_logit_rows=4, max_num_seqs=3)
    story.ask("b", prompt(3, 100), max_tokens=8)
    story.ask("c", prompt(3, 200), max_tokens=8)
    story.step()
    story.ask("a", prompt(20), priority=-1, prompt_logprobs=0, max_tokens=1)
    for _ in range(4):
        story.step()
        assert len(story.plan.rows) == 3, "nobody's next token waits for the scores"
        logits = [row.num_prompt_logits + row.samples for row in story.plan.rows]
        assert sum(logits) == 4
    story.run()
    assert scores(story) == prompt_scores(prompt(20))

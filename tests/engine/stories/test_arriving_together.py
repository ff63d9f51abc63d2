"""Many prompts at once: each is computed whole in its turn, and what runs gets a token a step.

Counted is in tokens computed, which stand for time: a step is bounded by its tokens.
"""

from __future__ import annotations

import statistics

import pytest

from tests.engine.engine_story import Story, prompt

PROMPTS, LENGTH, ROWS = 16, 128, 32


def told_after(step_tokens: int) -> tuple[list[int], int]:
    """(tokens computed before each prompt's first token comes, in order, most steps between two
    tokens of an answer)."""
    story = Story(
        num_blocks=1024,
        max_num_seqs=ROWS,
        max_num_batched_tokens=step_tokens,
        max_model_len=512,
        max_logit_rows=ROWS,
        max_queued_requests=PROMPTS,
        max_queued_tokens=PROMPTS * LENGTH,
        prefix_caching=False,
    )
    for index in range(PROMPTS):
        story.ask(f"{index}", prompt(LENGTH, 1 + index), max_tokens=300)
    computed, pause = 0, 0
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for step in range(200):
        frame = story.step()
        computed += sum(row.num_scheduled_tokens for row in story.plan.rows)
        for output in frame.choices:
            name = output.request_id
            first.setdefault(name, computed)
            pause = max(pause, step - last.get(name, step))
            last[name] = step
        if len(first) == PROMPTS:
            assert list(first) == [f"{index}" for index in range(PROMPTS)]
            return sorted(first.values()), pause
    raise AssertionError("every prompt comes to its first token")


@pytest.mark.parametrize("step_tokens", [ROWS + 16, 128])
def test_the_median_first_token_comes_before_sixty_percent_of_the_work(step_tokens: int) -> None:
    told, pause = told_after(step_tokens)
    assert statistics.median(told) <= 0.6 * told[-1]
    assert told[0] <= LENGTH + step_tokens  # the first one does not wait for the others
    assert pause == 1  # what runs has a token in every step


def test_a_step_that_holds_all_prompts_makes_each_wait_for_all() -> None:
    told, _ = told_after(PROMPTS * LENGTH)
    assert told[0] == told[-1] == PROMPTS * LENGTH

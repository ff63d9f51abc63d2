"""Blocks that a prompt will need are kept for it, though a step computes only a part of it."""

from __future__ import annotations

from tests.engine.engine_story import Story, prompt


def test_two_long_prompts_in_one_step_do_not_share_the_blocks_of_one() -> None:
    """The first one's logits end its chunk early, so that the step has tokens left for another."""
    story = Story(num_blocks=6, max_logit_rows=4)
    story.ask("first", prompt(15), max_tokens=1, prompt_logprobs=0)
    story.ask("second", prompt(15, 100), max_tokens=1)
    story.step()
    assert story.chunks() == {0: 4}, "three more blocks are the first one's"
    story.run()
    assert story.core.gauges().preemptions == 0


def test_two_long_prompts_in_one_step_run_together_where_there_are_blocks_for_both() -> None:
    story = Story(num_blocks=8, max_logit_rows=4)
    story.ask("first", prompt(15), max_tokens=1, prompt_logprobs=0)
    story.ask("second", prompt(15, 100), max_tokens=1)
    story.step()
    assert story.chunks() == {0: 4, 1: 14}
    story.run()
    assert story.core.gauges().preemptions == 0

"""The bench of prompts that arrive together: what it measures, and one run of it."""

from __future__ import annotations

import pytest

from server.bench.together import Together, answer_together, main
from tests.engine.engine_story import Story, prompt


def test_each_prompt_has_a_first_token_and_nothing_is_left_running() -> None:
    story = Story(num_blocks=64, max_num_batched_tokens=8)
    told = answer_together(story.core, [prompt(8, 1 + 20 * index) for index in range(4)])
    assert len(told.first_tokens) == 4
    assert 0 < told.first_tokens[0] <= told.median <= told.all == told.first_tokens[-1]
    assert 0 < told.pause < told.all
    assert not story.core.has_work


def test_a_refused_prompt_ends_the_bench() -> None:
    with pytest.raises(SystemExit, match="refused a prompt"):
        answer_together(Story().core, [prompt(65)])


def test_the_median_is_of_the_prompts() -> None:
    assert Together((1.0, 2.0, 4.0, 10.0), 0.5).median == 3.0


def test_it_says_how_long_the_demo_model_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prompts", "3", "--prompt-tokens", "8", "--rounds", "1"]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("3 prompts of 8 tokens together, ")
    assert [row.split()[0] for row in rows] == ["all", "median", "pause"]

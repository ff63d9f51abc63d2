"""Whole workloads, overlapped and not, and of several tokens a step: each request is sent the same,
in the same order."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest

from tests.engine.engine_story import Story

SEEDS = range(40)


def story_of(seed: int, *, overlaps: bool, decode_steps: int = 1) -> Story:
    """One engine of a drawn size; the workload follows from the seed as well."""
    draw = random.Random(seed)
    return Story(
        overlaps=overlaps,
        decode_steps=decode_steps,
        num_blocks=draw.choice((8, 12, 24)),
        block_size=draw.choice((1, 2, 4)) * 2,
        windows=draw.choice(((None,), (None, 5) if seed % 2 else (3,), (None, None))),
        max_num_seqs=draw.choice((1, 3, 6)),
        max_num_batched_tokens=draw.choice((2, 7, 64)),
        max_logit_rows=draw.choice((2, 5, 64)),
        max_preemptions=draw.choice((8, 2, 0)),
        max_queued_requests=64,
        max_queued_tokens=4096,
        max_model_len=24,
        prefix_caching=draw.random() < 0.7,
        eos_token_ids=(7,),
    )


def wishes(draw: random.Random, story: Story) -> dict[str, Any]:
    max_tokens = draw.choice((0, 1, 2, 5, 9))
    return {
        "max_tokens": max_tokens,
        "min_tokens": min(max_tokens, draw.choice((0, 0, 2))),
        "n": min(story.limits.max_num_seqs, draw.choice((1, 1, 2, 3))),
        "seed": draw.randrange(3),
        "priority": draw.choice((0, 0, 1)),
        "logprobs": draw.choice((None, 1)),
        "prompt_logprobs": draw.choice((None, None, 0)),
        "stop_token_ids": tuple(draw.sample(range(1000), 300)) if draw.random() < 0.5 else (),
    }


def told(story: Story) -> dict[str, list[Any]]:
    """By request and choice: every event, without what only time decides."""
    events: dict[str, list[Any]] = {}
    for output in story.prompts:
        if output.logprobs is not None:
            scores = events.setdefault(f"{output.request_id} prompt", [])
            scores.append(output.logprobs.logprobs)
    for choice in story.choices:
        key = f"{choice.request_id} {choice.choice}"
        events.setdefault(key, []).append(
            (choice.token_ids, choice.finish_reason, choice.stop_token_id, choice.logprobs)
        )
    for key in [key for key in events if key.endswith("prompt")]:
        events[key] = [b"".join(events[key])]  # in chunks of any size
    return events


@cache
def run(seed: int, *, overlaps: bool = False, decode_steps: int = 1, scored: bool = True) -> Story:
    story = story_of(seed, overlaps=overlaps, decode_steps=decode_steps)
    draw = random.Random(seed + 1000)
    prefix = [draw.randrange(900) for _ in range(8)]
    for index in range(draw.choice((3, 8, 14))):
        own = [draw.randrange(900) for _ in range(draw.randrange(1, 6))]
        tokens = prefix[: draw.choice((0, 4, 8))] + own
        wished = wishes(draw, story)
        if not scored:
            wished |= {"logprobs": None, "max_tokens": wished["max_tokens"] + 4}
        story.ask(f"r{index}", tokens, **wished)
        if draw.random() < 0.5:
            story.step()
    story.run()
    return story


@pytest.mark.parametrize("seed", SEEDS)
def test_a_workload_is_answered_alike(seed: int) -> None:
    plain, overlapped = run(seed, overlaps=False), run(seed, overlaps=True)
    assert told(overlapped) == told(plain)
    assert overlapped.refused == plain.refused
    assert plain.num_discarded == 0
    stops = sum(choice.finish_reason == "stop" for choice in overlapped.choices)
    preemptions = overlapped.core.gauges().preemptions
    assert overlapped.num_discarded <= stops + preemptions, "at most a step for each late end"
    assert overlapped.blocks()[:2] == (0, 0)


def one_by_one(events: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The same, as if each token had been told by itself."""
    return {
        key: [
            (event[0][n : n + 1], *(event[1:3] if last else (None, None)), event[3])
            for event in told
            for n in range(len(event[0]) or 1)
            for last in [n + 1 >= len(event[0])]
        ]
        if not key.endswith("prompt")
        else told
        for key, told in events.items()
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_several_tokens_a_step_are_the_same_tokens(seed: int) -> None:
    plain, several = run(seed, scored=False), run(seed, decode_steps=seed % 7 + 2, scored=False)
    assert one_by_one(told(several)) == told(plain)
    assert several.refused == plain.refused
    assert several.blocks()[:2] == (0, 0)


def test_the_workloads_are_given_several_tokens() -> None:
    """And discard some, where an end is met before the last of them."""
    stories = [run(seed, decode_steps=seed % 7 + 2, scored=False) for seed in SEEDS]
    steps = [plan.num_decode_steps for story in stories for plan in story.executor.plans]
    assert sum(count > 1 for count in steps) > 40
    assert max(steps) > 4
    assert sum(story.num_discarded for story in stories) > 10


def test_the_workloads_meet_what_they_are_for() -> None:
    stories = [run(seed, overlaps=True) for seed in SEEDS]
    endings = [output.finish_reason for s in stories for output in s.choices]
    assert endings.count("stop") > 20
    assert endings.count("length") > 60
    assert sum(s.core.gauges().preemptions for s in stories) > 20
    assert sum(s.num_discarded for s in stories) > 20
    assert sum(len(p.block_copies) for s in stories for p in s.executor.plans) > 20

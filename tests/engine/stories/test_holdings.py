"""What each request holds: blocks now, the most, over time; each block divided by its holders."""

from __future__ import annotations

import random

import pytest

from server.engine.events import RequestMemory
from tests.engine.engine_story import Story, prompt


def memory(story: Story, name: str) -> RequestMemory:
    (found,) = story.core.memory_of([name])
    return found


def pool_shares(story: Story) -> float:
    """The shares of all requests, and the blocks that no request holds."""
    core, pool, kv = story.core, story.pool, story.state.kv
    shares = sum(one.share for one in core.memory_of(list(story.state.requests)))
    in_flight = sum(
        1 / pool.num_references(block) for one in kv.deferred for block in one.block_ids
    )
    return shares + in_flight + pool.num_cached + pool.num_free


def test_a_request_alone_holds_its_blocks_whole() -> None:
    story = Story()
    story.ask("a", prompt(9), max_tokens=8)
    story.step()
    held = memory(story, "a")
    assert (held.blocks, held.peak_blocks, held.shared_blocks, held.share) == (3, 3, 0, 3.0)
    assert held.block_bytes == story.state.kv.block_bytes > 0
    story.now += 10
    assert memory(story, "a").block_seconds == pytest.approx(30)
    story.now += 2
    assert memory(story, "a").block_seconds == pytest.approx(36)


def test_a_shared_prefix_is_divided_by_its_owners() -> None:
    story = Story(num_blocks=32)
    story.ask("a", prompt(8) + prompt(4, 100), max_tokens=30)
    story.step()
    story.now += 4  # a alone: 3 blocks
    story.ask("b", prompt(8) + prompt(4, 200), max_tokens=30)
    story.step()
    a, b = memory(story, "a"), memory(story, "b")
    assert (a.shared_blocks, b.shared_blocks) == (2, 2)
    assert (a.share, b.share) == (a.blocks - 1, b.blocks - 1)
    story.now += 6
    assert memory(story, "a").block_seconds == pytest.approx(4 * 3 + 6 * a.share)
    assert memory(story, "b").block_seconds == pytest.approx(6 * b.share)


def test_choices_of_one_request_count_a_block_once() -> None:
    story = Story()
    story.ask("a", prompt(9), n=3, max_tokens=8)
    story.step()
    story.step()
    held = memory(story, "a")
    choices = story.state.requests["a"].sequences
    assert held.blocks == len({block for one in choices for block in one.block_tables[0]})
    assert held.blocks < sum(len(one.block_tables[0]) for one in choices)
    assert held.peak_blocks == held.blocks
    assert held.shared_blocks == 0
    assert held.share == pytest.approx(held.blocks)
    story.now += 5
    later = memory(story, "a").block_seconds
    assert later - held.block_seconds == pytest.approx(5 * held.blocks)


def test_what_waits_holds_nothing_and_unknown_ids_are_left_out() -> None:
    story = Story(num_blocks=4)
    story.ask("a", prompt(9), max_tokens=4)
    story.step()
    story.ask("b", prompt(9, 100), max_tokens=4)
    story.step()
    story.now += 9
    waiting = memory(story, "b")
    assert (waiting.blocks, waiting.peak_blocks, waiting.block_seconds) == (0, 0, 0.0)
    assert story.core.memory_of(["nobody", "b"]) == (waiting,)


def test_outputs_tell_it_only_to_those_that_asked() -> None:
    story = Story()
    told = Story.request("told", prompt(5), max_tokens=3, reports_memory=True)
    untold = Story.request("untold", prompt(5, 50), max_tokens=3)
    story.core.submit([told, untold])
    story.step()
    story.now += 7
    story.run()
    heard = [choice.memory for choice in story.choices if choice.request_id == "told"]
    unheard = [choice.memory for choice in story.choices if choice.request_id == "untold"]
    assert unheard == [None] * len(heard)
    assert heard[-1] is not None
    assert (heard[-1].blocks, heard[-1].peak_blocks) == (0, 2)
    assert heard[-1].block_seconds == pytest.approx(14)


def test_an_abort_tells_what_was_held() -> None:
    story = Story()
    story.core.submit([Story.request("a", prompt(5), max_tokens=3, reports_memory=True)])
    story.step()
    story.now += 3
    story.core.abort(["a"])
    story.run()
    last = story.choices[-1].memory
    assert last is not None
    assert (last.blocks, last.block_seconds) == (0, pytest.approx(6))


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_all_shares_add_up_to_the_pool_and_all_time_to_the_pools_time(
    seed: int, overlaps: bool
) -> None:
    """Forks, prefixes, preemptions, aborts; each second of each block is somebody's, once."""
    choose = random.Random(seed)
    story = Story(num_blocks=14, overlaps=overlaps, max_num_seqs=6, max_queued_requests=32)
    outside = 0.0  # block-seconds that no request held
    for turn in range(60):
        if choose.random() < 0.4:
            tokens = prompt(choose.randint(1, 10), choose.choice((1, 100)))
            n, most = choose.choice((1, 1, 2, 3)), choose.randint(1, 9)
            request = Story.request(f"r{turn}", tokens, n=n, max_tokens=most, reports_memory=True)
            story.core.submit([request])
        if story.state.requests and choose.random() < 0.1:
            story.core.abort([choose.choice(list(story.state.requests))])
        if story.core.has_work:
            story.step()
        assert pool_shares(story) == pytest.approx(story.pool.num_blocks)
        shares = sum(one.share for one in story.core.memory_of(list(story.state.requests)))
        seconds = choose.random()
        outside += (story.pool.num_blocks - shares) * seconds
        story.now += seconds
    live = story.core.memory_of(list(story.state.requests))
    ended = {
        choice.request_id: choice.memory.block_seconds
        for choice in story.choices
        if choice.memory is not None and choice.request_id not in story.state.requests
    }
    held = sum(one.block_seconds for one in live) + sum(ended.values())
    assert held > 0
    assert held + outside == pytest.approx(story.pool.num_blocks * story.now)

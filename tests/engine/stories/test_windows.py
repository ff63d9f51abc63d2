"""Groups whose layers see a window: what is held, what is freed and when, and what is found again.

Blocks have 4 tokens. A window of 6 reaches into at most 3 of them while one token is computed.
"""

from __future__ import annotations

import itertools

import pytest

from server.engine.kv_cache_manager import KVCacheManager
from server.engine.kv_spec import NULL_BLOCK, GroupKind, KVCacheGroup, KVCacheSpec
from server.engine.prefix_cache import CacheEntry, Namespace
from server.engine.prefix_hit import PrefixHit, longest_hit
from tests.engine.engine_story import Story, prompt, solo
from tests.engine.fake_executor import kv_spec

NULL = NULL_BLOCK
WINDOW = 6


def held(story: Story, name: str, group: int = 0, choice: int = 0) -> int:
    return sum(block != NULL for block in story.table(name, choice, group))


# -- how many blocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
@pytest.mark.parametrize("window", [1, 4, 6, 13])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_blocks_of_is_the_most_that_windows_and_chunks_touch(
    size: int, window: int, chunk: int
) -> None:
    group = KVCacheGroup(GroupKind.WINDOW, (0,), 8, size, window)
    for tokens in (1, 3, 16, 40, 200):
        touched = max(
            -(-min(start + chunk, tokens) // size) - group.first_block(start)
            for start in range(tokens)
        )
        most = -(-(window - 1 + chunk - 1) // size) + 1  # wherever in a block the window begins
        assert touched <= group.blocks_of(tokens, chunk) == min(-(-tokens // size), most)
        if tokens > 3 * size + window + chunk:
            assert touched == group.blocks_of(tokens, chunk)


def test_groups_of_one_cache_have_blocks_of_one_size() -> None:
    groups = tuple(KVCacheGroup(GroupKind.FULL, (n,), 8, 4 * n) for n in (1, 2))
    with pytest.raises(ValueError, match=r"blocks of \[4, 8\] tokens"):
        KVCacheSpec(groups, 8)


def test_a_sequence_holds_its_window_and_no_more_however_long_it_gets() -> None:
    story = Story(windows=(None, WINDOW), num_blocks=20)
    story.ask("a", prompt(3), max_tokens=24)
    for computed in range(3, 26):
        story.step()
        assert len(story.table("a", group=0)) == held(story, "a", 0) == -(-computed // 4)
        assert len(story.table("a", group=1)) == -(-computed // 4)
        oldest = max(0, computed - WINDOW + 1) // 4
        assert story.table("a", group=1)[:oldest] == [NULL] * oldest
        assert held(story, "a", 1) == -(-computed // 4) - oldest <= 3
    story.run()
    assert story.tokens("a") == solo(prompt(3), 24)


def test_a_prompt_in_chunks_needs_its_window_and_a_chunk_not_its_whole_context() -> None:
    """4 blocks for 48 tokens, which would take 12: the budget's 8 and the 5 before them."""
    story = Story(windows=(WINDOW,), num_blocks=4, max_num_batched_tokens=8)
    story.ask("a", prompt(40), max_tokens=8)
    most = 0
    while story.core.has_work:
        story.step()
        most = max(most, story.pool.num_blocks - story.pool.num_free - story.pool.num_cached)
    assert story.tokens("a") == solo(prompt(40), 8)
    assert story.core.gauges().preemptions == 0
    assert most <= 3, "between steps the window alone is held"


def test_what_can_never_fit_is_refused_by_the_same_arithmetic() -> None:
    story = Story(windows=(WINDOW,), num_blocks=3, max_num_batched_tokens=8)
    story.ask("fits whole", prompt(8), max_tokens=4)
    story.ask("needs a window and a chunk", prompt(9), max_tokens=8)
    story.run()
    assert [refused.request_ids for refused in story.refused] == [("needs a window and a chunk",)]
    assert "4 KV-cache blocks, and the cache has 3 (12 tokens)" in story.refused[0].message
    assert story.tokens("fits whole") == solo(prompt(8), 4)


@pytest.mark.parametrize(
    ("windows", "num_blocks", "tokens"),
    [
        ((None,), 6, 24),
        ((None, None), 7, 12),
        ((None, 6), 10, 24),
        ((6,), 3, 12),
        ((6,), 5, 20),  # behind a window any length fits: the pool's slots are what is said
    ],
)
def test_the_longest_sequence_alone(
    windows: tuple[int | None, ...], num_blocks: int, tokens: int
) -> None:
    kv = KVCacheManager(kv_spec(num_blocks, 4, windows), max_chunk=8, prefix_caching=True)
    assert kv.max_tokens_alone() == tokens
    assert kv.blocks_for(tokens) <= num_blocks


def test_the_books_balance_while_windows_move() -> None:
    """Steps are a second apart, and what they leave is held for that second."""
    story = Story(windows=(None, WINDOW, 3), num_blocks=30)
    story.ask("a", prompt(11), max_tokens=12, reports_memory=True)
    left: list[int] = []
    while story.core.has_work:
        story.now += 1.0
        story.step()
        gauges = story.core.gauges()
        parts = (gauges.blocks_active, gauges.blocks_reserved, gauges.blocks_cached)
        assert sum(parts) + gauges.blocks_free == 30
        for memory in story.core.memory_of(["a"]):
            assert memory.blocks == sum(held(story, "a", group) for group in range(3))
            assert memory.share == memory.blocks
            left.append(memory.blocks)
    memory = story.ending("a").memory
    assert memory is not None
    assert (memory.blocks, memory.share) == (0, 0)
    assert memory.block_seconds == pytest.approx(sum(left))
    assert memory.peak_blocks == 11 > max(left), "before the first step's windows moved on"


# -- when they are freed -------------------------------------------------------------------------


def test_nothing_is_freed_before_the_step_that_moves_the_window_is_done() -> None:
    story = Story(windows=(WINDOW,))
    story.ask("a", prompt(12), max_tokens=3)
    step = story.begin()
    assert story.table("a") == [0, 1, 2]
    story.end(step)
    assert story.table("a") == [NULL, 1, 2], "the next token sees positions 7 to 12"


def test_a_step_in_flight_keeps_what_its_first_token_sees() -> None:
    story = Story(windows=(WINDOW,), overlaps=True, max_num_batched_tokens=4)
    story.ask("a", prompt(20), max_tokens=2)
    first, second = story.begin(), story.begin()
    assert story.table("a") == [0, 1]
    story.end(first)
    third = story.begin()
    assert story.table("a") == [0, 1, 2], "the second step starts at 4 and sees from 0"
    story.end(second)
    story.begin()
    assert story.table("a") == [0, 1, 2, 3], "the third starts at 8 and sees from 3"
    story.end(third)
    assert story.table("a") == [NULL, 1, 2, 3], "the fourth starts at 12 and sees from 7"
    story.run()
    assert story.tokens("a") == solo(prompt(20), 2)


def test_it_waits_for_a_step_whose_end_moves_a_window_and_nobody_gives_way() -> None:
    """Each needs a third block for a chunk while the step before it holds its first."""
    story = Story(windows=(4,), num_blocks=4, overlaps=True, max_num_batched_tokens=4)
    story.ask("a", prompt(16), max_tokens=1)
    story.ask("b", prompt(16, 100), max_tokens=1)
    story.run()
    assert story.core.gauges().preemptions == 0
    for name, start in (("a", 1), ("b", 100)):
        assert story.tokens(name) == solo(prompt(16, start), 1)


def test_choices_get_what_they_see_of_the_prompt_before_the_first_one_frees_it() -> None:
    """The prompt's 10 tokens are computed: the first choice sees from 5 on, the others, which
    compute the last one again, from 4 on."""
    story = Story(windows=(WINDOW,), num_blocks=20)
    story.ask("a", prompt(13), n=3, max_tokens=6)
    story.step()
    assert story.table("a", choice=0) == [NULL, NULL, 2, 3]
    assert story.table("a", choice=1)[:3] == [NULL, 1, 2]
    assert story.pool.num_references(1) == 2, "the two others share it, the first has left it"
    story.run()
    for choice in range(3):
        assert story.tokens("a", choice) == solo(prompt(13), 6, choice=choice)


def test_a_preempted_sequence_comes_back_to_its_window_alone() -> None:
    story = Story(windows=(None, WINDOW), num_blocks=20)
    story.ask("a", prompt(17), max_tokens=5)
    story.steps(2)
    assert story.core.scheduler.preempt("a", 0)
    story.step()
    (admitted,) = story.plan.admitted
    assert admitted.num_computed_tokens == 16
    assert admitted.block_tables[1][:2] == (NULL, NULL)
    story.run()
    assert story.tokens("a") == solo(prompt(17), 5)


def test_a_protected_sequence_uses_its_own_blocks_over_and_over() -> None:
    story = Story(windows=(WINDOW,), num_blocks=8, max_preemptions=1, max_num_batched_tokens=4)
    story.ask("a", prompt(5), max_tokens=40)
    story.steps(2)
    assert story.core.scheduler.preempt("a", 0)
    story.step()
    mine = {block for block in story.table("a") if block != NULL}
    assert len(mine) == 3, "6 - 1 + 4 tokens reach into 3 blocks"
    told: list[int] = []
    while story.core.has_work:
        story.step()
        if story.core.has_work:
            assert {block for block in story.table("a") if block != NULL} == mine
            told += itertools.chain(*(ids for row in story.plan.rows for ids in row.new_block_ids))
    assert set(told) == mine and len(told) > 2 * len(mine), "the executor is told of each again"
    assert story.tokens("a") == solo(prompt(5), 40)


def test_what_a_protected_sequence_uses_again_is_shared_with_nobody() -> None:
    story = Story(windows=(None, WINDOW), num_blocks=40, max_preemptions=0)
    story.ask("a", prompt(13), n=2, max_tokens=6)
    story.step()
    assert story.states() == {("a", 0): "running", ("a", 1): "preempted"}
    story.ask("b", prompt(13), max_tokens=6)
    story.run()
    assert story.hit("b") == 0
    for name, choice in (("a", 0), ("a", 1), ("b", 0)):
        assert story.tokens(name, choice) == solo(prompt(13), 6, choice=choice)


# -- what is found again -------------------------------------------------------------------------


def test_what_leaves_a_window_stays_cached() -> None:
    story = Story(windows=(None, WINDOW))
    story.ask("a", prompt(13), max_tokens=9)
    story.step()
    assert story.blocks() == (6, 0, 2, 8), "4 and 2 are held, 2 full ones have left the window"
    story.ask("b", prompt(9), max_tokens=2)
    story.step()
    assert story.hit("b") == 8
    assert story.plan.admitted[0].block_tables[1][:2] == (4, 5)


def test_a_hit_needs_of_a_window_group_only_what_the_next_token_sees() -> None:
    """What left the window first is forgotten first; who needs it finds nothing."""
    story = Story(windows=(None, WINDOW), num_blocks=12)
    story.ask("a", prompt(17), max_tokens=1)
    story.run()
    assert story.pool.cached_ids == (5, 6, 7, 8, 3, 2, 1, 0), "4 to 9 are the window group's"
    story.ask("other", prompt(9, 500), max_tokens=0)
    story.run()
    assert [bool(entry.block_ids[1]) for entry in story.state.kv.cache.entries[:4]] == [
        *(False, False, True, True)
    ]
    story.ask("same", prompt(17), max_tokens=2)
    story.run()
    assert story.hit("same") == 16
    assert story.tokens("same") == solo(prompt(17), 2)
    story.ask("shorter", prompt(13), max_tokens=1)
    story.run()
    assert story.hit("shorter") == 0


def _entries(*block_ids: tuple[tuple[int, ...], ...]) -> list[CacheEntry]:
    namespace = Namespace("", "", 0)
    return [CacheEntry(b"", namespace, None, b"", ids) for ids in block_ids]


@pytest.mark.parametrize(
    ("count", "hit"),
    [
        (0, PrefixHit(0, ((), ()))),
        (1, PrefixHit(4, ((0,), (7,)))),
        (2, PrefixHit(4, ((0,), (7,)))),  # at 8 the window reaches back to the second block
        (3, PrefixHit(4, ((0,), (7,)))),
        (4, PrefixHit(16, ((0, 1, 2, 3), (NULL, NULL, 8, 9)))),
        (5, PrefixHit(16, ((0, 1, 2, 3), (NULL, NULL, 8, 9)))),  # the full group has no fifth
    ],
)
def test_the_longest_prefix_that_all_groups_serve_wins(count: int, hit: PrefixHit) -> None:
    groups = kv_spec(10, 4, (None, 8)).groups
    entries = _entries(((0,), (7,)), ((1,), ()), ((2,), (8,)), ((3,), (9, 5)), ((), (4,)))
    found = longest_hit(entries[:count], groups)
    assert (found.num_tokens, found.block_ids) == (hit.num_tokens, hit.block_ids)
    assert found.entry is (entries[hit.num_tokens // 4 - 1] if hit.num_tokens else None)


def test_a_window_of_one_token_needs_no_block_at_all() -> None:
    groups = kv_spec(10, 4, (1,)).groups
    assert longest_hit(_entries(((),), ((),)), groups).block_ids == ((NULL, NULL),)


def test_prefixes_that_windows_leave_are_known_up_to_a_bound() -> None:
    """One a block of the pool; then the one used longest ago makes room, from its end on."""
    story = Story(windows=(4,), num_blocks=6, max_model_len=64)
    for index in range(4):
        story.ask(f"r{index}", prompt(17, 1 + 100 * index), max_tokens=1)
        story.run()
        assert len(story.state.kv.cache.entries) <= 6
    story.ask("last again", prompt(17, 301), max_tokens=1)
    story.run()
    assert story.hit("last again") == 16
    assert story.tokens("last again") == solo(prompt(17, 301), 1)

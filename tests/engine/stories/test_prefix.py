"""What a request finds computed already, and what is forgotten first."""

from __future__ import annotations

from typing import Any

import pytest

from server.engine.prefix_cache import sha256_digest
from tests.engine.engine_story import Story, prompt, solo


def hit_after(first: dict[str, Any], second: dict[str, Any], **limits: Any) -> int:
    """Cached tokens that ``second`` finds when ``first`` has run to its end."""
    story = Story(**limits)
    story.ask("first", **first)
    story.run()
    story.ask("second", **second)
    story.run()
    assert story.tokens("second") == solo(second["tokens"], 2)
    return story.hit("second")


@pytest.mark.parametrize(
    ("length", "hit"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12)]
)
def test_the_same_prompt_is_found_in_whole_blocks_and_never_whole(length: int, hit: int) -> None:
    assert hit_after({"tokens": prompt(length)}, {"tokens": prompt(length)}) == hit


def test_a_common_prefix_is_found_up_to_the_last_whole_common_block() -> None:
    other = (*prompt(7), 900, 901, 902, 903, 904)
    assert hit_after({"tokens": prompt(12)}, {"tokens": other}) == 4


def test_the_same_tokens_after_another_beginning_are_not_found() -> None:
    other = (900, *prompt(12)[1:])
    assert hit_after({"tokens": prompt(12)}, {"tokens": other}) == 0


@pytest.mark.parametrize(
    "scope", [{"salt": "s"}, {"adapter": ("a", 0)}, {"adapter": ("", 1)}, {"salt": "a" * 9}]
)
def test_another_salt_or_adapter_or_version_finds_nothing(scope: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"tokens": prompt(12)}
    assert hit_after(plain, plain | scope) == 0
    assert hit_after(plain | scope, plain) == 0
    assert hit_after(plain | scope, plain | scope) == 8


def test_a_reloaded_adapter_finds_nothing_of_its_old_version() -> None:
    old, new = ({"tokens": prompt(12), "adapter": ("a", version)} for version in (1, 2))
    assert hit_after(old, new) == 0
    assert hit_after(new, new) == 8


def test_switched_off_nothing_is_found_and_nothing_kept() -> None:
    same = {"tokens": prompt(12)}
    assert hit_after(same, same, prefix_caching=False) == 0
    story = Story(prefix_caching=False)
    story.ask("a", prompt(12))
    story.run()
    assert story.blocks() == (0, 0, 0, 16)


def test_a_prompt_that_is_scored_reads_no_cached_prefix() -> None:
    story = Story()
    story.ask("a", prompt(12))
    story.run()
    story.ask("scored", prompt(12), prompt_logprobs=0)
    story.run()
    assert story.hit("scored") == 0


def test_what_was_generated_is_found_by_the_next_turn() -> None:
    story = Story()
    story.ask("a", prompt(6), max_tokens=7)
    story.run()
    turn = (*prompt(6), *story.tokens("a"), 900)
    story.ask("b", turn)
    frame = story.step()
    assert story.hit("b") == 12, "13 tokens are known, the last of them was never computed"
    assert frame.stats is not None
    assert (frame.stats.prefix_queried_tokens, frame.stats.prefix_hit_tokens) == (14, 12)
    assert story.chunks() == {0: 2}


def test_a_hit_shares_the_very_blocks_and_computes_only_the_rest() -> None:
    story = Story()
    story.ask("a", prompt(10), max_tokens=9)
    story.step()
    story.ask("b", prompt(10), max_tokens=9)
    story.step()
    assert (story.table("a"), story.table("b")) == ([0, 1, 2], [0, 1, 3])
    assert story.chunks() == {0: 1, 1: 2}
    assert [story.pool.num_references(block) for block in range(4)] == [2, 2, 1, 1]
    assert story.blocks() == (4, 0, 0, 12)


def test_a_block_is_not_found_before_the_step_that_computes_it_is_done() -> None:
    story = Story(max_num_seqs=2)
    story.ask("a", prompt(9))
    story.ask("b", prompt(9))
    step = story.begin()
    assert story.state.kv.cache.entries == ()
    story.end(step)
    assert (story.hit("a"), story.hit("b")) == (0, 0)
    assert len(story.state.kv.cache.entries) == 2


def test_a_step_that_failed_leaves_nothing_to_be_found() -> None:
    story = Story()
    story.executor.fail_at = "result"
    story.ask("a", prompt(9))
    story.step()
    assert story.state.kv.cache.entries == ()
    story.run()
    assert story.tokens("a") == solo(prompt(9), 2)


@pytest.mark.parametrize("name", ["constant", "one byte"])
def test_a_hash_that_collides_costs_hits_and_never_a_result(name: str) -> None:
    digests = {"constant": lambda _: b"", "one byte": lambda data: sha256_digest(data)[:1]}
    told = []
    for digest in (sha256_digest, digests[name]):
        story = Story(digest=digest, num_blocks=12)
        for index in range(12):
            tokens = (*prompt(9, 1 + 100 * (index % 3)), index % 4)
            story.ask(f"r{index}", tokens, max_tokens=3)
            story.step()
        story.run()
        told.append([story.tokens(f"r{index}") for index in range(12)])
    assert told[0] == told[1]


def test_a_block_after_another_prefix_is_not_taken_where_only_its_own_tokens_are_hashed() -> None:
    story = Story(digest=lambda data: data[-16:])  # of the last four tokens, and of no parent
    story.ask("other beginning", prompt(5, 500), max_tokens=1)
    story.run()
    story.ask("first", prompt(12), max_tokens=1)
    story.run()
    mixed = (*prompt(4, 500), *prompt(12)[4:])
    story.ask("mixed", mixed, max_tokens=2)
    story.run()
    assert story.hit("mixed") == 4
    assert story.tokens("mixed") == solo(mixed, 2)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"salt": "s"}, {"salt": "t"}),
        ({"adapter": ("a", 0)}, {"adapter": ("b", 0)}),
        ({"adapter": ("a", 0)}, {"adapter": ("a", 1)}),
    ],
)
def test_each_scope_has_a_cache_of_its_own(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Not only does it find nothing of another's: it keeps its own beside it."""
    story = Story()
    for name, scope in (
        ("one", first),
        ("two", second),
        ("one again", first),
        ("two again", second),
    ):
        story.ask(name, prompt(9), max_tokens=2, **scope)
        story.run()
        assert story.hit(name) == (8 if name.endswith("again") else 0)


def test_a_constant_hash_finds_the_first_block_alone() -> None:
    same = {"tokens": prompt(12)}
    assert hit_after(same, same, digest=lambda _: b"") == 4


def test_the_leaf_of_a_prefix_is_forgotten_before_what_it_hangs_on() -> None:
    story = Story(num_blocks=4)
    story.ask("a", prompt(12), max_tokens=1)
    story.run()
    assert list(story.pool.cached_ids) == [2, 1, 0]
    story.ask("other", prompt(8, 500), max_tokens=0)
    story.run()
    assert list(story.pool.cached_ids) == [1, 0, 2, 3]
    story.ask("again", prompt(12), max_tokens=0)
    story.run()
    assert story.hit("again") == 8


def test_the_prefix_used_longest_ago_is_forgotten_first() -> None:
    story = Story(num_blocks=4)
    for name, start in (("a", 1), ("b", 100), ("a again", 1)):
        story.ask(name, prompt(5, start), max_tokens=1)
        story.run()
    assert story.blocks() == (0, 0, 2, 2)
    story.ask("large", prompt(9, 500), max_tokens=1)
    story.run()
    for name, start, hit in (("a third", 1, 4), ("b again", 100, 0)):
        story.ask(name, prompt(5, start), max_tokens=1)
        story.run()
        assert story.hit(name) == hit


def test_a_reset_forgets_every_prefix_and_leaves_what_runs_its_blocks() -> None:
    story = Story()
    story.ask("ended", prompt(9, 500), max_tokens=1)
    story.run()
    story.ask("runs", prompt(9), max_tokens=5)
    story.step()
    table = story.table("runs")
    story.core.reset_prefix_cache()
    assert story.table("runs") == table
    assert story.blocks() == (3, 0, 0, 13)
    story.run()
    assert story.tokens("runs") == solo(prompt(9), 5)
    story.ask("again", prompt(9, 500))
    story.run()
    assert story.hit("again") == 0


def test_a_prefix_is_found_only_where_every_group_has_it() -> None:
    story = Story(windows=(None, None), num_blocks=7)
    story.ask("a", prompt(9), max_tokens=0)
    story.run()
    assert story.blocks() == (0, 0, 4, 3)
    story.ask("runs", prompt(1, 700), max_tokens=3)
    story.step()
    story.ask("one block is evicted", prompt(3, 500), max_tokens=0)
    story.step()
    story.run()
    assert story.blocks() == (0, 0, 3, 4)
    story.ask("again", prompt(9), max_tokens=0)
    story.run()
    assert story.hit("again") == 4


def test_an_eviction_shortens_the_prefix_in_every_group_alike() -> None:
    """Were one group's blocks all forgotten first, the other's would serve nobody."""
    story = Story(windows=(None, None), num_blocks=10)
    story.ask("a", prompt(17), max_tokens=1)
    story.run()
    assert story.blocks() == (0, 0, 8, 2)
    story.ask("b", prompt(8, 100), max_tokens=1)
    story.run()
    story.ask("again", prompt(17), max_tokens=1)
    story.run()
    assert story.hit("again") == 12, "one block was evicted of each group: the last"

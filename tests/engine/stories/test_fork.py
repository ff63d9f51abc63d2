"""One prompt, several choices: what they share, and when each ends."""

from __future__ import annotations

from tests.engine.engine_story import Story, prompt, solo


def test_choices_share_the_full_blocks_of_the_prompt_and_copy_the_rest_once_each() -> None:
    story = Story()
    story.ask("a", prompt(6), n=3, max_tokens=4)
    story.step()
    assert story.states() == {("a", choice): "running" for choice in range(3)}
    assert [story.table("a", choice) for choice in range(3)] == [[0, 1], [0, 2], [0, 3]]
    assert [story.pool.num_references(block) for block in range(4)] == [3, 1, 1, 1]
    assert story.blocks() == (4, 0, 0, 12)
    assert story.core.gauges().kv_tokens_filled == 4 + 2 + 1 + 1
    story.step()
    assert story.plan.block_copies == ((1, 2), (1, 3))
    assert [row.choice for row in story.plan.admitted] == [1, 2]
    assert [row.num_computed_tokens for row in story.plan.admitted] == [5, 5]
    story.step()
    assert not story.plan.block_copies


def test_every_choice_gets_the_tokens_that_it_would_get_alone() -> None:
    story = Story()
    story.ask("a", prompt(6), n=3, max_tokens=5, seed=7)
    story.run()
    for choice in range(3):
        assert story.tokens("a", choice) == solo(prompt(6), 5, seed=7, choice=choice)
    assert len({story.tokens("a", choice) for choice in range(3)}) == 3


def test_nothing_is_copied_where_the_shared_tokens_end_with_a_block() -> None:
    story = Story()
    story.ask("a", prompt(5), n=2, max_tokens=4)
    story.step()
    assert [story.table("a", choice) for choice in range(2)] == [[0, 1], [0]]
    story.step()
    assert not story.plan.block_copies
    assert [story.table("a", choice) for choice in range(2)] == [[0, 1], [0, 2]]
    story.run()
    assert story.tokens("a", 1) == solo(prompt(5), 4, choice=1)


def test_a_prompt_of_full_blocks_recomputes_its_last_token_in_a_copy() -> None:
    story = Story()
    story.ask("a", prompt(8), n=2, max_tokens=4)
    story.steps(2)
    assert story.plan.block_copies == ((1, 2),)
    assert [story.table("a", choice) for choice in range(2)] == [[0, 1, 3], [0, 2]]


def test_choices_wait_with_their_rows_until_the_prompt_is_computed() -> None:
    story = Story(max_num_batched_tokens=4, max_num_seqs=2)
    story.ask("a", prompt(6), n=2, max_tokens=2)
    story.ask("b", prompt(2, 100), max_tokens=2)
    story.step()
    assert story.states() == {("a", 0): "running", ("a", 1): "fork_pending", ("b", 0): "waiting"}
    assert story.queue() == (1, 1, 2)
    story.step()
    assert story.states()["a", 1] == "running"


def test_a_choice_without_a_free_block_queues_and_gets_the_same_tokens_later() -> None:
    story = Story(num_blocks=2)
    story.ask("a", prompt(6), n=2, max_tokens=2)
    story.step()
    assert story.states() == {("a", 0): "running", ("a", 1): "preempted"}
    assert (story.core.gauges().sequences_preempted, story.core.gauges().preemptions) == (1, 0)
    assert story.blocks() == (2, 0, 0, 0)
    story.run()
    assert story.endings() == [("a", 0, "length"), ("a", 1, "length")]
    assert story.tokens("a", 1) == solo(prompt(6), 2, choice=1)


def test_the_first_choice_may_end_with_its_first_token_and_the_others_still_get_theirs() -> None:
    story = Story()
    story.ask("a", prompt(6), n=3, max_tokens=1)
    story.step()
    assert story.endings() == [("a", 0, "length")]
    assert story.blocks() == (3, 0, 0, 13), "copies are made before anything is written"
    story.step()
    assert story.plan.block_copies == ((1, 2), (1, 3))
    for choice in range(3):
        assert story.tokens("a", choice) == solo(prompt(6), 1, choice=choice)
    assert story.blocks() == (0, 0, 1, 15)


def test_an_abort_ends_every_choice_in_one_go() -> None:
    story = Story()
    story.ask("a", prompt(6), n=3, max_tokens=9)
    story.steps(2)
    story.core.abort(["a"])
    assert story.states() == {}
    assert story.blocks() == (0, 0, 1, 15)
    story.step()
    assert sorted(story.endings()) == [("a", choice, "abort") for choice in range(3)]


def test_an_abort_between_the_fork_and_its_copies_leaves_no_copy_behind() -> None:
    story = Story()
    story.ask("a", prompt(6), n=3, max_tokens=9)
    story.step()
    story.core.abort(["a"])
    story.ask("b", prompt(6, 100))
    story.run()
    assert all(plan.block_copies == () for plan in story.executor.plans)
    assert story.tokens("b") == solo(prompt(6, 100), 2)


def test_one_choice_that_met_a_stop_string_ends_alone() -> None:
    story = Story()
    story.ask("a", prompt(6), n=3, max_tokens=4)
    story.steps(2)
    story.core.finish("a", 1, 0)
    states = ("running", "finished_stopped", "running")
    assert tuple(story.states().values()) == states
    story.run()
    assert story.endings() == [("a", 0, "length"), ("a", 2, "length")]
    assert story.tokens("a", 2) == solo(prompt(6), 4, choice=2)


def test_the_others_compute_the_prompt_themselves_where_the_first_ended_before_it() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(6), n=3, max_tokens=2)
    story.step()
    story.core.finish("a", 0, 0)
    states = ("finished_stopped", "preempted", "preempted")
    assert tuple(story.states().values()) == states
    story.run()
    assert sorted(story.endings()) == [("a", 1, "length"), ("a", 2, "length")]
    for choice in (1, 2):
        assert story.tokens("a", choice) == solo(prompt(6), 2, choice=choice)


def test_a_preempted_gang_gives_all_its_rows_back_and_comes_again_together() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(6), n=3, max_tokens=2)
    story.step()
    assert story.core.scheduler.preempt("a", 0)
    assert story.states() == {("a", 0): "preempted", ("a", 1): "waiting", ("a", 2): "waiting"}
    assert story.state.rows.num_free == 4
    story.run()
    for choice in range(3):
        assert story.tokens("a", choice) == solo(prompt(6), 2, choice=choice)


def test_a_scored_prompt_of_many_choices_ends_them_all_without_a_token() -> None:
    story = Story()
    story.ask("a", prompt(6), n=3, max_tokens=0)
    story.step()
    assert sorted(story.endings()) == [("a", choice, "length") for choice in range(3)]
    assert [story.tokens("a", choice) for choice in range(3)] == [(), (), ()]
    assert story.blocks() == (0, 0, 1, 15)

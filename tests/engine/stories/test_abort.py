"""An abort, whatever the request is doing: it ends at once, and leaves nothing behind."""

from __future__ import annotations

from tests.engine.engine_story import Story, prompt, solo


def assert_empty(story: Story) -> None:
    assert story.states() == {}
    assert story.queue() == (0, 0, 0)
    assert story.blocks()[:2] == (0, 0)
    assert story.state.rows.num_free == 4


def test_while_it_waits() -> None:
    story = Story()
    story.ask("a", prompt(6))
    assert story.queue() == (0, 1, 6)
    story.core.abort(["a"])
    assert_empty(story)
    frame = story.step()
    assert [accepted.request_ids for accepted in frame.accepted] == [("a",)]
    assert story.endings() == [("a", 0, "abort")]
    assert story.executor.plans == []


def test_between_two_chunks_of_its_prompt() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(10))
    story.steps(2)
    story.core.abort(["a"])
    assert_empty(story)
    assert story.blocks() == (0, 0, 2, 14), "what was computed can still be found"
    story.run()
    assert (story.endings(), story.tokens("a")) == ([("a", 0, "abort")], ())


def test_while_it_decodes() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=9)
    story.steps(3)
    story.core.abort(["a"])
    assert_empty(story)
    story.run()
    assert story.endings() == [("a", 0, "abort")]
    assert story.tokens("a") == solo(prompt(3), 3)


def test_while_its_step_is_in_flight_the_blocks_are_freed_only_after_it() -> None:
    story = Story()
    story.ask("a", prompt(6), max_tokens=9)
    story.step()
    step = story.begin()
    story.core.abort(["a"])
    assert story.blocks() == (0, 2, 0, 14)
    reserved = story.state.kv.reserved_block_ids()
    assert reserved == {0, 1}
    assert all(story.pool.num_references(block) == 1 for block in reserved)
    frame = story.end(step)
    assert story.blocks() == (0, 0, 1, 15)
    assert [output.token_ids for output in frame.choices] == [()]
    assert story.endings() == [("a", 0, "abort")]
    assert_empty(story)


def test_blocks_of_a_step_in_flight_are_handed_to_nobody_before_its_end() -> None:
    story = Story(num_blocks=3)
    story.ask("a", prompt(9))
    step = story.begin()
    story.core.abort(["a"])
    story.ask("b", prompt(9, 100))
    assert (story.blocks(), story.pool.num_available) == ((0, 3, 0, 0), 0)
    story.end(step)
    assert story.pool.num_available == 3
    story.run()
    assert story.tokens("b") == solo(prompt(9, 100), 2)


def test_blocks_that_others_share_stay_theirs() -> None:
    story = Story()
    for name in ("a", "b"):
        story.ask(name, prompt(9), max_tokens=5)
        story.step()
    story.core.abort(["a"])
    assert story.blocks() == (3, 0, 0, 13)
    assert [story.pool.num_references(block) for block in (0, 1)] == [1, 1]
    story.run()
    assert story.tokens("b") == solo(prompt(9), 5)


def test_while_it_is_preempted() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=9)
    story.steps(2)
    assert story.core.scheduler.preempt("a", 0)
    story.core.abort(["a"])
    assert_empty(story)
    assert story.core.gauges().sequences_preempted == 0


def test_while_its_choices_wait_for_the_prompt() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(6), n=3)
    story.step()
    story.core.abort(["a"])
    assert_empty(story)
    story.run()
    assert sorted(story.endings()) == [("a", choice, "abort") for choice in range(3)]


def test_between_a_failed_step_and_its_retry() -> None:
    story = Story()
    story.ask("a", prompt(3))
    story.executor.fail_at = "result"
    story.step()
    story.core.abort(["a"])
    assert_empty(story)
    assert story.state.quarantined == {}


def test_twice_and_unknown_and_ended_ids_are_no_error() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=1)
    story.step()
    story.ask("b", prompt(3))
    story.core.abort(["a", "b", "b", "never seen"])
    story.core.abort(["b"])
    story.run()
    assert story.endings() == [("a", 0, "length"), ("b", 0, "abort")]


def test_the_row_goes_to_the_next_one_and_is_released_first() -> None:
    story = Story(max_num_seqs=1)
    story.ask("a", prompt(3), max_tokens=9)
    story.ask("b", prompt(3, 100))
    story.step()
    story.core.abort(["a"])
    story.step()
    assert story.plan.released == (0,)
    assert [row.row for row in story.plan.admitted] == [0]
    story.run()
    assert story.tokens("b") == solo(prompt(3, 100), 2)

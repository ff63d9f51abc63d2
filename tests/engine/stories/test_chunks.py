"""What a step computes: chunks of prompts and decoded tokens, out of one budget."""

from __future__ import annotations

from server.engine.step_plan import AdmittedRow, PlannedRow
from tests.engine.engine_story import Story, prompt, solo


def test_nothing_is_computed_where_nobody_asked() -> None:
    story = Story()
    assert story.core.step() is None
    assert not story.core.has_work
    assert story.executor.plans == []


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks_and_the_last_one_samples() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(10), max_tokens=2)
    request = story.request("a", prompt(10), max_tokens=2)
    story.steps(4)
    first, second, third, fourth = story.executor.plans
    assert first.admitted == (AdmittedRow(0, prompt(10), 10, 0, request.sampling, 0, ((0,),)),)
    assert first.rows == (PlannedRow(0, 4),)
    assert second.rows == (PlannedRow(0, 4, ((1,),)),)
    assert third.rows == (PlannedRow(0, 2, ((2,),), samples=True),)
    assert fourth.rows == (PlannedRow(0, 1, ((),), samples=True),)
    assert [plan.admitted for plan in (second, third, fourth)] == [(), (), ()]
    assert story.tokens("a") == solo(prompt(10), 2)
    assert story.blocks() == (0, 0, 2, 14)


def test_the_first_token_comes_with_the_last_chunk_and_not_before() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(10))
    story.steps(2)
    assert story.choices == []
    story.step()
    assert story.tokens("a") == solo(prompt(10), 1)


def test_a_decoded_token_comes_out_of_the_budget_before_a_chunk_does() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("talks", prompt(3), max_tokens=5)
    story.step()
    story.ask("reads", prompt(8, 100))
    frame = story.step()
    assert story.chunks() == {0: 1, 1: 3}
    assert [row.samples for row in story.plan.rows] == [True, False]
    assert frame.stats is not None
    assert (frame.stats.num_decode_tokens, frame.stats.num_prompt_tokens) == (1, 3)
    story.step()
    assert story.chunks() == {0: 1, 1: 3}
    story.step()
    assert story.chunks() == {0: 1, 1: 2}
    story.run()
    assert story.tokens("talks") == solo(prompt(3), 5)
    assert story.tokens("reads") == solo(prompt(8, 100), 2)


def test_two_prompts_share_a_step_and_the_second_gets_what_is_left() -> None:
    story = Story(max_num_batched_tokens=8)
    story.ask("a", prompt(5))
    story.ask("b", prompt(5, 100))
    story.step()
    assert story.chunks() == {0: 5, 1: 3}
    assert story.queue() == (2, 0, 0)
    story.step()
    assert story.chunks() == {0: 1, 1: 2}


def test_a_prompt_that_finds_no_budget_waits_in_the_queue() -> None:
    story = Story(max_num_batched_tokens=4)
    story.ask("a", prompt(8))
    story.ask("b", prompt(3, 100))
    story.step()
    assert story.chunks() == {0: 4}
    assert story.queue() == (1, 1, 3)
    assert story.blocks() == (1, 0, 0, 15)


def test_blocks_are_taken_as_tokens_come_and_counted_to_the_slot() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=4)
    filled = []
    while story.core.has_work:
        story.step()
        gauges = story.core.gauges()
        filled.append((gauges.blocks_active, gauges.kv_tokens_reserved, gauges.kv_tokens_filled))
    assert filled == [(1, 4, 3), (1, 4, 4), (2, 8, 5), (0, 0, 0)]


def test_one_row_of_logits_lets_only_the_first_in_rank_sample() -> None:
    story = Story(max_logit_rows=1)
    story.ask("a", prompt(3), max_tokens=2)
    story.ask("b", prompt(3, 100), max_tokens=1)
    story.step()
    assert [(row.num_scheduled_tokens, row.samples) for row in story.plan.rows] == [
        (3, True),
        (2, False),
    ]
    story.step()
    assert story.chunks() == {0: 1}
    story.step()
    assert story.chunks() == {1: 1}
    assert story.tokens("b") == solo(prompt(3, 100), 1)


def test_each_group_of_the_cache_has_a_table_of_its_own_from_the_one_pool() -> None:
    story = Story(windows=(None, None))
    story.ask("a", prompt(6), max_tokens=1)
    story.step()
    assert story.plan.admitted[0].block_tables == ((0, 1), (2, 3))
    assert story.blocks() == (0, 0, 2, 14)


def test_the_gauges_stand_for_the_moment_while_a_step_is_in_flight() -> None:
    story = Story()
    story.ask("a", prompt(6))
    assert story.queue() == (0, 1, 6)
    step = story.begin()
    assert story.queue() == (1, 0, 0)
    assert story.blocks() == (2, 0, 0, 14)
    story.end(step)
    assert (story.core.gauges().steps, story.core.gauges().heartbeat) == (1, 1)
    story.run()
    busy = story.core.gauges()
    assert story.core.step() is None
    idle = story.core.gauges()
    assert (idle.steps, idle.heartbeat) == (busy.steps, busy.heartbeat + 1)

"""Two steps in flight: a step is planned before the tokens of the one before it are known."""

from __future__ import annotations

import pytest

from server.engine.request import EngineError
from tests.engine.engine_story import Story, own_logprobs, prompt, prompt_scores, solo

pytestmark = pytest.mark.usefixtures("quiet_engine")


def test_the_next_token_is_planned_before_the_last_one_is_known() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=4)
    first, second = story.begin(), story.begin()
    assert [row.num_scheduled_tokens for row in first.plan.rows] == [3]
    assert [row.num_scheduled_tokens for row in second.plan.rows] == [1]
    assert second.plan.rows[0].samples
    assert story.sequence("a").num_in_flight_tokens == 2
    assert story.core.begin_step() is None, "at most two"
    assert story.end(first).choices[0].token_ids == solo(prompt(3), 1)
    story.end(second)
    story.run()
    assert story.tokens("a") == solo(prompt(3), 4)


def test_an_executor_that_does_not_overlap_has_one_step_at_a_time() -> None:
    story = Story()
    story.ask("a", prompt(3))
    step = story.begin()
    assert story.core.begin_step() is None
    story.end(step)


def test_steps_end_in_the_order_in_which_they_began() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=4)
    story.begin()
    second = story.begin()
    with pytest.raises(ValueError, match="step 1 is not the oldest in flight"):
        story.core.end_step(second)


@pytest.mark.parametrize("max_tokens", [0, 1, 2, 5])
def test_an_end_that_is_known_ahead_is_never_overrun(max_tokens: int) -> None:
    story = Story(overlaps=True, max_model_len=3 + max(1, max_tokens))
    story.ask("a", prompt(3), max_tokens=max_tokens)
    story.run()
    assert sum(plan.num_tokens for plan in story.executor.plans) == 3 + max(0, max_tokens - 1)
    assert story.tokens("a") == solo(prompt(3), max_tokens)
    assert story.num_discarded == 0


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5])
def test_an_end_that_a_token_decides_wastes_one_step_at_most(stop_after: int) -> None:
    tokens = solo(prompt(3), 6)
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=6, stop_token_ids=(tokens[stop_after - 1],))
    story.run()
    assert story.tokens("a") == tokens[:stop_after]
    assert story.ending("a").stop_token_id == tokens[stop_after - 1]
    assert story.num_discarded == 1
    assert len(story.executor.plans) == stop_after + 1
    assert story.blocks()[:2] == (0, 0)


def test_blocks_are_kept_until_the_last_step_that_names_them_is_done() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(4), max_tokens=6)
    first, second = story.begin(), story.begin()
    story.core.abort(["a"])
    assert story.blocks() == (0, 2, 0, 14)
    story.end(first)
    assert story.blocks() == (0, 2, 0, 14), "the second still writes"
    frame = story.end(second)
    assert story.blocks() == (0, 0, 0, 16)
    assert frame.stats is not None
    assert frame.stats.num_discarded_tokens == 1
    assert not story.core.has_work


def test_work_is_left_while_a_wasted_step_is_under_way() -> None:
    story = Story(overlaps=True, eos_token_ids=(solo(prompt(3), 1)[0],))
    story.ask("a", prompt(3), max_tokens=6)
    assert story.step().choices[0].finish_reason == "stop"
    assert story.core.has_work
    assert story.step().choices == ()
    assert not story.core.has_work


def test_one_victim_gives_way_while_its_blocks_wait_for_a_step() -> None:
    """Its blocks come a step late: nobody else must give way for that."""
    story = Story(overlaps=True, num_blocks=6, max_num_seqs=3)
    for index, name in enumerate(("a", "b", "c")):
        story.ask(name, prompt(7, 100 * index + 1), max_tokens=8)
    story.steps(1)
    assert story.core.gauges().preemptions == 0
    while not story.core.gauges().preemptions:
        story.step()
    assert story.core.gauges().preemptions == 1
    assert story.states()[("c", 0)] == "preempted"
    assert story.states()[("b", 0)] == "running"
    story.run()
    for index, name in enumerate(("a", "b", "c")):
        assert story.tokens(name) == solo(prompt(7, 100 * index + 1), 8)


def test_the_choices_fork_from_a_prompt_whose_first_choice_has_gone_on() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(6), n=3, max_tokens=5)
    first, second = story.begin(), story.begin()
    assert len(second.plan.rows) == 1, "the others wait for the prompt"
    story.end(first)
    third = story.begin()
    (copied, _), (again, _) = third.plan.block_copies
    assert copied == again == story.table("a")[1], "the block that the first choice goes on in"
    story.end(second)
    story.end(third)
    story.run()
    for choice in range(3):
        assert story.tokens("a", choice) == solo(prompt(6), 5, choice=choice)


def test_the_first_choice_may_end_while_its_copies_wait() -> None:
    story = Story(overlaps=True, eos_token_ids=(solo(prompt(6), 1)[0],))
    story.ask("a", prompt(6), n=2, max_tokens=5)
    story.run()
    assert story.ending("a").finish_reason == "stop"
    assert story.tokens("a", 1) == solo(prompt(6), 5, choice=1)


def test_end_ids_are_forbidden_by_place_and_not_by_what_is_known() -> None:
    tokens = solo(prompt(3), 4)
    story = Story(overlaps=True, eos_token_ids=(tokens[3],))
    story.ask("a", prompt(3), max_tokens=6, min_tokens=2)
    story.run()
    pending = [plan.rows[0].min_tokens_pending for plan in story.executor.plans]
    assert pending == [True, True, False, False, False]
    assert story.tokens("a") == tokens


def test_only_blocks_whose_tokens_are_known_can_be_found() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=6)
    story.begin()
    story.begin()
    assert story.sequence("a").num_computed_tokens == 4, "a whole block, when the steps are done"
    assert not story.state.kv.cache.entries
    story.core.abort(["a"])


def test_a_scored_prompt_is_scored_once_and_in_order() -> None:
    story = Story(overlaps=True, max_num_batched_tokens=4)
    story.ask("a", prompt(9), prompt_logprobs=0, max_tokens=2)
    story.run()
    scores = [
        score
        for output in story.prompts
        if output.logprobs
        for score in own_logprobs(output.logprobs)
    ]
    assert scores == prompt_scores(prompt(9))


def test_a_row_that_is_not_finite_ends_alone_and_wastes_its_step_in_flight() -> None:
    story = Story(overlaps=True, poison=(201,))
    story.ask("good", prompt(3, 100), max_tokens=4)
    story.ask("bad", prompt(6, 200), max_tokens=4)
    story.run()
    assert story.ending("bad").error_code == EngineError.NON_FINITE
    assert story.tokens("bad") == ()
    assert story.tokens("good") == solo(prompt(3, 100), 4)
    assert story.core.gauges().failed_steps == 0


def test_a_preempted_row_leaves_its_token_behind_and_gets_it_again() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=5)
    first, second = story.begin(), story.begin()
    assert story.core.scheduler.preempt("a", 0)
    assert story.sequence("a").num_in_flight_tokens == 0
    story.end(first)
    story.end(second)
    assert story.num_discarded == 2
    story.run()
    assert story.tokens("a") == solo(prompt(3), 5)


# -- steps that raise ---------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["forward", "device", "sample", "result"])
@pytest.mark.parametrize("when", [1, 2, 3])
def test_a_failed_step_is_done_again_and_nobody_notices(point: str, when: int) -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=5)
    story.ask("b", prompt(6, 100), max_tokens=5, n=2)
    story.steps(when)
    story.executor.fail_at = point
    story.run()
    assert story.core.gauges().failed_steps == 1
    assert story.tokens("a") == solo(prompt(3), 5)
    for choice in range(2):
        assert story.tokens("b", choice) == solo(prompt(6, 100), 5, choice=choice)
    assert story.state.quarantined == {}


def test_the_step_after_a_failed_one_is_void_and_blamed_for_nothing() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=5)
    first = story.begin()
    story.ask("b", prompt(3, 100), max_tokens=5)
    second = story.begin()
    story.executor.fail_at = "device"
    story.end(first)
    assert list(story.state.quarantined) == ["a"], "b was only in the step after it"
    assert story.core.begin_step() is None, "nothing starts before the executor is empty"
    frame = story.end(second)
    assert frame.choices == ()
    assert story.core.gauges().failed_steps == 1
    assert list(story.state.quarantined) == ["a"]


def test_nothing_is_begun_behind_a_step_that_did_not_start() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=5)
    story.executor.fail_at = "sample"
    step = story.begin()
    assert step.pending is None
    assert story.core.begin_step() is None
    story.end(step)


def test_a_suspect_runs_alone_and_without_a_step_behind_it() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=5)
    story.ask("b", prompt(3, 100), max_tokens=5)
    story.executor.fail_at = "device"
    story.step()
    story.step()
    assert list(story.state.quarantined) == ["a", "b"]
    alone = story.begin()
    assert len(alone.plan.rows) == 1
    assert story.core.begin_step() is None
    story.end(alone)


# -- figures ------------------------------------------------------------------------------------


def test_the_seconds_of_overlapping_steps_add_up_to_the_time_that_passed() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=4)
    for _ in range(4):
        story.now += 1.0
        story.step()
    assert sum(stats.step_seconds for stats in story.stats) == pytest.approx(3.0)


def test_each_step_reports_its_own_counts() -> None:
    story = Story(overlaps=True)
    story.ask("a", prompt(3), max_tokens=3)
    story.run()
    counts = [(s.num_prompt_tokens, s.num_decode_tokens) for s in story.stats]
    assert counts == [(3, 0), (0, 1), (0, 1)]
    assert [len(stats.queue_seconds) for stats in story.stats] == [1, 0, 0]

"""When blocks run out: who gives way, and what it loses (nothing but time)."""

from __future__ import annotations

from tests.engine.engine_story import Story, own_logprobs, prompt, prompt_scores, solo


def crowded() -> Story:
    """Three sequences of 4 tokens in 4 blocks: the first two that need a second block collide."""
    story = Story(num_blocks=4)
    for index, name in enumerate("abc"):
        story.ask(name, prompt(3, 1 + 100 * index), max_tokens=6)
        story.step()
    return story


def test_the_last_in_rank_gives_way_and_is_told_nothing_of_it() -> None:
    story = crowded()
    assert story.blocks() == (4, 0, 0, 0)
    frame = story.step()
    assert story.states() == {("a", 0): "running", ("b", 0): "running", ("c", 0): "preempted"}
    assert frame.stats is not None
    assert (frame.stats.num_preemptions, story.core.gauges().preemptions) == (1, 1)
    assert story.core.gauges().sequences_preempted == 1
    assert story.blocks() == (4, 0, 0, 0)
    story.run()
    for index, name in enumerate("abc"):
        assert story.tokens(name) == solo(prompt(3, 1 + 100 * index), 6)
    assert [name for name, _, _ in story.endings()] == ["a", "b", "c"]


def test_a_lower_priority_gives_way_before_a_later_arrival() -> None:
    story = Story(num_blocks=4)
    for index, (name, priority) in enumerate((("a", 0), ("b", 1), ("c", 0))):
        story.ask(name, prompt(3, 1 + 100 * index), max_tokens=6, priority=priority)
        story.step()
    story.step()
    assert story.states() == {("a", 0): "running", ("b", 0): "preempted", ("c", 0): "running"}


def test_what_arrived_first_never_gives_way_even_where_it_is_last_in_rank() -> None:
    story = Story(num_blocks=3)
    story.ask("first", prompt(3), max_tokens=6, priority=5)
    story.step()
    story.ask("urgent", prompt(3, 100), max_tokens=6, priority=0)
    story.steps(3)
    assert story.states() == {("first", 0): "running", ("urgent", 0): "preempted"}
    story.run()
    assert story.core.gauges().preemptions == 1
    assert story.tokens("urgent") == solo(prompt(3, 100), 6)


def test_the_needy_one_gives_way_itself_where_it_is_the_last() -> None:
    story = Story(num_blocks=3)
    story.ask("a", prompt(3), max_tokens=9)
    story.steps(2)
    story.ask("b", prompt(1, 100), max_tokens=9)
    story.steps(5)
    assert story.states() == {("a", 0): "running", ("b", 0): "preempted"}


def test_a_preempted_request_comes_back_before_later_arrivals() -> None:
    story = crowded()
    story.ask("later", prompt(2, 700), max_tokens=1)
    story.run()
    admitted = [row.token_ids[0] for plan in story.executor.plans for row in plan.admitted]
    assert admitted == [1, 101, 201, 201, 700]


def test_it_comes_back_with_all_its_tokens_and_computes_them_again() -> None:
    story = Story(prefix_caching=False)
    story.ask("a", prompt(3), max_tokens=6)
    story.steps(3)
    said = story.tokens("a")
    assert story.core.scheduler.preempt("a", 0)
    assert story.blocks() == (0, 0, 0, 16)
    assert story.queue() == (0, 1, 6)
    story.step()
    assert story.plan.released == (0,)
    (admitted,) = story.plan.admitted
    assert admitted.token_ids == (*prompt(3), *said)
    assert (admitted.num_prompt_tokens, admitted.num_computed_tokens) == (3, 0)
    assert story.chunks() == {0: 6}
    story.run()
    assert story.tokens("a") == solo(prompt(3), 6)


def test_it_finds_its_own_full_blocks_where_nobody_took_them() -> None:
    story = Story()
    story.ask("a", prompt(9), max_tokens=6)
    story.step()
    assert story.core.scheduler.preempt("a", 0)
    assert story.blocks() == (0, 0, 2, 14)
    story.step()
    assert story.plan.admitted[0].num_computed_tokens == 8
    assert len(story.prompts) == 1, "a request is told once what its prompt found"


def test_a_step_in_flight_for_a_preempted_row_is_forgotten_and_done_again() -> None:
    story = Story()
    story.ask("a", prompt(3), max_tokens=3)
    step = story.begin()
    assert story.core.scheduler.preempt("a", 0)
    assert story.blocks() == (0, 1, 0, 15)
    story.end(step)
    assert story.blocks() == (0, 0, 0, 16)
    assert story.choices == []
    story.run()
    assert story.tokens("a") == solo(prompt(3), 3)


def test_after_enough_preemptions_it_comes_back_with_its_whole_length_reserved() -> None:
    story = Story(max_preemptions=2)
    story.ask("a", prompt(3), max_tokens=12)
    for _ in range(2):
        story.step()
        assert story.core.scheduler.preempt("a", 0)
    story.step()
    assert story.blocks() == (4, 0, 0, 12)
    gauges = story.core.gauges()
    assert (gauges.kv_tokens_reserved, gauges.kv_tokens_filled) == (16, 5)
    assert not story.core.scheduler.preempt("a", 0), "it is protected now"
    story.run()
    assert story.tokens("a") == solo(prompt(3), 12)


def test_without_preemptions_a_request_starts_only_where_its_whole_length_fits() -> None:
    story = Story(num_blocks=4, max_preemptions=0)
    story.ask("a", prompt(3), max_tokens=6)
    story.ask("b", prompt(3, 100), max_tokens=6)
    story.step()
    assert story.blocks() == (3, 0, 0, 1)
    assert story.queue() == (1, 1, 3)
    story.run()
    assert story.core.gauges().preemptions == 0
    assert story.endings() == [("a", 0, "length"), ("b", 0, "length")]


def test_prompt_scores_are_not_sent_twice_by_a_prompt_computed_twice() -> None:
    story = Story(max_num_batched_tokens=4, prefix_caching=False)
    story.ask("a", prompt(10), prompt_logprobs=0)
    story.step()
    assert story.core.scheduler.preempt("a", 0)
    story.run()
    scored = [output for output in story.prompts if output.logprobs is not None]
    assert [output.first_position for output in scored] == [1, 5, 9]
    told = [pair for output in scored for pair in own_logprobs(output.logprobs)]
    assert told == prompt_scores(prompt(10))
    assert [plan.rows[0].num_prompt_logits for plan in story.executor.plans] == [4, 0, 4, 1, 0]


def test_a_choice_of_many_is_preempted_alone() -> None:
    story = Story()
    story.ask("a", prompt(6), n=2, max_tokens=6)
    story.steps(2)
    assert story.core.scheduler.preempt("a", 0)
    assert story.states() == {("a", 0): "preempted", ("a", 1): "running"}
    assert story.pool.num_references(0) == 1
    story.run()
    for choice in range(2):
        assert story.tokens("a", choice) == solo(prompt(6), 6, choice=choice)


def test_what_does_not_run_cannot_be_preempted() -> None:
    story = Story(max_num_seqs=1)
    story.ask("a", prompt(3))
    assert not story.core.scheduler.preempt("a", 0)
    assert not story.core.scheduler.preempt("a", 1)
    assert not story.core.scheduler.preempt("never seen", 0)
    assert story.core.gauges().preemptions == 0

"""Whatever the priorities, nobody starves: not in the queue, not for blocks, not for a step."""

from __future__ import annotations

from server.engine.queue import WaitingQueue
from server.engine.sequence import Request
from server.engine.turns import FREE_STEPS, OVERTAKING
from tests.engine.engine_story import Story, prompt, solo

LOWEST = -(1 << 31)
ROWS, BUDGET, PROMPT, ANSWER = 2, 8, 4, 6
VICTIMS = 30


def queue_of(priority: int, **limits: int) -> Story:
    """30 requests wait while another client always has two that came later."""
    story = Story(
        max_num_seqs=ROWS,
        max_num_batched_tokens=BUDGET,
        max_queued_requests=64,
        prefix_caching=False,
        queue_timeout_s=1e9,
        **limits,
    )
    for index in range(VICTIMS):
        story.ask(f"v{index}", prompt(PROMPT, 1 + 10 * index), max_tokens=ANSWER)
    num_rivals = 0
    for step in range(3000):
        rivals = sum(s.request.id.startswith("rival") for s in story.state.waiting)
        for _ in range(2 - rivals):
            num_rivals += 1
            start = 500 + num_rivals % 100
            story.ask(
                f"rival{num_rivals}", prompt(PROMPT, start), max_tokens=ANSWER, priority=priority
            )
        story.now = 0.01 * step
        story.step()
        if not any(name.startswith("v") for name in story.state.requests):
            return story
    raise AssertionError(f"after 3000 steps there wait {list(story.state.requests)}")


def live(arrival: int) -> Request:
    return Request(
        Story.request(f"r{arrival}", prompt(1), priority=-arrival),
        arrival=arrival, arrival_time=0.0, timeout_s=1.0, eos_token_ids=(), num_groups=1,
        max_decode_steps=1,
    )  # fmt: skip


def work_before(story: Story) -> dict[str, int]:
    """Tokens that were computed before each request got its first row."""
    found: dict[str, int] = {}
    computed = 0
    for plan in story.executor.plans:
        for row in plan.admitted:
            found.setdefault(f"v{(row.token_ids[0] - 1) // 10}", computed)
        computed += plan.num_tokens
    return found


def test_no_request_waits_for_more_than_four_times_the_work_whatever_others_ask_for() -> None:
    by_arrival, urged = work_before(queue_of(0)), work_before(queue_of(LOWEST))
    at_once = ROWS * (PROMPT + ANSWER)
    for name in (f"v{index}" for index in range(VICTIMS)):
        fair = by_arrival[name] + at_once
        assert urged[name] <= (1 + OVERTAKING) * fair + FREE_STEPS * BUDGET + at_once
    last = f"v{VICTIMS - 1}"
    assert urged[last] > 3 * by_arrival[last], "urgent requests do go first, three times of four"


def test_what_gave_way_to_urgent_requests_comes_back_among_them() -> None:
    story = Story(
        num_blocks=15, max_num_seqs=3, max_num_batched_tokens=5, max_queued_requests=64,
        queue_timeout_s=1e9,
    )  # fmt: skip
    story.ask("first", prompt(9, 900), max_tokens=49)
    story.step()
    story.ask("patient", prompt(3), max_tokens=20)
    story.steps(3)
    for step in range(2000):
        if len(story.state.waiting) < 2:
            name = f"rival{step}"
            story.ask(name, prompt(5, 100 + step % 700), max_tokens=12, priority=LOWEST)
        story.step()
        if ("patient", 0) not in story.states():
            break
    assert story.core.gauges().preemptions > 0
    assert story.tokens("patient") == solo(prompt(3), 20)


def test_what_had_its_turn_is_not_sent_back_by_those_that_it_waited_for() -> None:
    story = Story(num_blocks=4)
    story.core.scheduler.turns.debt = 10_000
    story.ask("first", prompt(3), max_tokens=6)
    story.ask("patient", prompt(3, 101), max_tokens=6, priority=5)
    story.ask("other", prompt(1, 301), max_tokens=1)
    story.step()
    story.core.scheduler.turns.debt = 0
    story.ask("urgent", prompt(3, 201), max_tokens=6, priority=-5)
    story.steps(2)
    assert story.states()["patient", 0] == "running"
    assert story.states()["urgent", 0] == "preempted"


def test_all_choices_of_what_had_its_turn_have_had_it() -> None:
    story = Story(num_blocks=6)
    story.core.scheduler.turns.debt = 10_000
    story.ask("first", prompt(3), max_tokens=9)
    story.ask("patient", prompt(3, 101), n=2, max_tokens=6, priority=5)
    story.ask("other", prompt(1, 301), max_tokens=1)
    story.step()
    story.core.scheduler.turns.debt = 0
    story.ask("urgent", prompt(3, 201), max_tokens=6, priority=-5)
    while story.core.gauges().preemptions == 0:
        story.step()
    assert story.states()["patient", 1] == "running"
    assert story.states()["urgent", 0] == "preempted"


def test_an_urgent_prompt_of_many_steps_holds_up_no_answer() -> None:
    story = Story(num_blocks=32, max_num_batched_tokens=4, max_model_len=64)
    story.ask("answers", prompt(2), max_tokens=30)
    story.step()
    story.ask("urgent", prompt(40, 100), max_tokens=1, priority=-5)
    for _ in range(12):
        story.step()
        assert story.chunks()[0] == 1, "a token for each that runs comes before a longer chunk"
    assert story.chunks()[1] == 3


def test_a_few_urgent_requests_go_first_and_owe_nothing() -> None:
    story = Story(max_num_seqs=1)
    story.ask("patient", prompt(3), priority=1)
    for index in range(5):
        story.ask(f"urgent{index}", prompt(3, 100 + 10 * index), priority=-1)
    story.run()
    assert [name for name, _, _ in story.endings()][-1] == "patient"
    assert story.core.scheduler.turns.debt == 0


def test_the_queue_keeps_no_more_keys_than_twice_its_members_while_one_is_passed_over() -> None:
    queue = WaitingQueue()
    waits, *passing = (live(arrival).primary for arrival in range(1001))
    queue.push(waits)
    for sequence in passing:
        queue.push(sequence)
        assert queue.head() is sequence
        assert queue.oldest() is waits
        queue.remove(sequence)
    assert len(queue._by_arrival) <= 66
    assert len(queue._heap) <= 66
    assert list(queue) == [waits]

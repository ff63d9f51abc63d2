"""The API process's budget: who finds room, who waits, who is refused, and that all comes back."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ErrorCode, QuireError, StartupError
from server.host_budget import SMALL_BODY, HostBudget, Use
from server.startup.api_memory import LEAST_BYTES, MOST_BYTES, api_memory

MIB = 2**20
HELD = 30 * MIB  # of a budget of 80 MiB


def budget() -> HostBudget:
    return HostBudget(80 * MIB)


def is_empty(one: HostBudget) -> bool:
    return not any(one.used.values())


def test_large_bodies_leave_room_for_small_ones_and_both_for_what_was_begun() -> None:
    one = budget()
    with one.hold(Use.BODIES) as large, one.hold(Use.BODIES) as small, one.hold(Use.BODIES) as more:
        large.hold(HELD // 2)
        with pytest.raises(QuireError) as refused:
            more.hold(SMALL_BODY + 1)
        assert refused.value.code is ErrorCode.MEMORY_BUDGET
        assert refused.value.retry_after == 1
        assert more.nbytes == 0
        small.hold(SMALL_BODY)
        large.hold(HELD * 3 // 4, Use.REQUESTS)
        with pytest.raises(QuireError):
            more.hold(SMALL_BODY)
        with one.hold(Use.EVENTS) as events:
            events.hold(HELD // 4 - SMALL_BODY)
            assert sum(one.used.values()) == HELD
    assert is_empty(one)
    assert one.peak_bytes == HELD


def test_what_could_never_find_room_is_told_so_and_not_to_come_again() -> None:
    with budget().hold(Use.BODIES) as body, pytest.raises(QuireError, match="--api-memory") as no:
        body.hold(HELD)
    assert no.value.code is ErrorCode.BODY_TOO_LARGE
    assert no.value.retry_after is None


def test_a_body_that_grows_past_what_all_may_hold_is_told_so_and_not_to_come_again() -> None:
    with budget().hold(Use.BODIES) as body:
        body.hold(HELD // 2)
        with pytest.raises(QuireError) as no:
            body.hold(HELD // 2 + 1)
    assert no.value.code is ErrorCode.BODY_TOO_LARGE


def test_what_is_held_above_its_mark_can_be_given_back_in_part() -> None:
    one = budget()
    with one.hold(Use.EVENTS) as events, one.hold(Use.BODIES) as body:
        body.hold(HELD // 2)
        events.hold(HELD // 2)
        body.hold(HELD // 4)  # events have grown past what bodies may reach together
        assert one.used[Use.BODIES] == HELD // 4
    assert is_empty(one)


def test_a_use_is_shown_as_what_it_is_now() -> None:
    one = budget()
    with one.hold(Use.BODIES) as request:
        request.hold(3 * MIB)
        request.hold(2 * MIB, Use.REQUESTS)
        assert one.reading() == {
            "budget": 80 * MIB, "peak": 3 * MIB, "bodies": 0, "requests": 2 * MIB, "events": 0,
            "work": 0,
        }  # fmt: skip


async def test_small_work_is_an_eighth_of_its_room_at_most() -> None:
    one = budget()  # with 10 MiB for small work
    large = await one.turn(40 * MIB, "large")
    waiting = asyncio.create_task(one.turn(10 * MIB // 8 + 1, "not small"))
    small = [await one.turn(10 * MIB // 8, "small") for _ in range(8)]
    await asyncio.sleep(0)
    assert not waiting.done()
    large.end()
    for turn in (await waiting, *small):
        turn.end()
    assert is_empty(one)


async def test_who_is_first_in_line_and_leaves_lets_a_smaller_one_have_its_turn_at_once() -> None:
    one = budget()
    first = await one.turn(30 * MIB, "first")
    leaver = asyncio.create_task(one.turn(20 * MIB, "leaver"))
    fits = asyncio.create_task(one.turn(10 * MIB, "fits"))
    await asyncio.sleep(0)
    leaver.cancel()
    for _ in range(4):
        await asyncio.sleep(0)
    assert fits.done(), "it waits for nothing but its own room"
    (await fits).end()
    first.end()
    assert is_empty(one)


async def test_work_that_can_never_have_its_turn_is_refused() -> None:
    with pytest.raises(QuireError, match=r"Parsing takes 40.00 MiB.*keeps\s40.00 MiB"):
        await budget().turn(40 * MIB + 1, "Parsing")


async def test_work_has_its_turn_as_asked_for_and_small_work_does_not_wait_for_large() -> None:
    one, order = budget(), []

    async def work(name: str, nbytes: int) -> None:
        async with one.working(nbytes, name):
            order.append(name)

    first = await one.turn(30 * MIB, "first")
    waiting = [asyncio.create_task(work(name, 20 * MIB)) for name in ("a", "b")]
    fits_but_waits = asyncio.create_task(work("c", 5 * MIB))
    await asyncio.sleep(0)
    await work("small", MIB)
    assert order == ["small"]
    first.end()
    await asyncio.gather(*waiting, fits_but_waits)
    assert is_empty(one)
    assert order == ["small", "a", "b", "c"]


@pytest.mark.parametrize("given", [False, True])
async def test_who_leaves_the_line_lets_the_others_move_up(given: bool) -> None:
    """Also where the turn came at the very moment of leaving."""
    one = budget()
    first = await one.turn(40 * MIB, "first")
    leaver = asyncio.create_task(one.turn(40 * MIB, "leaver"))
    next = asyncio.create_task(one.turn(40 * MIB, "next"))
    await asyncio.sleep(0)
    if given:
        first.end()
    leaver.cancel()
    if not given:
        first.end()
    (await next).end()
    assert leaver.cancelled()
    assert is_empty(one)


async def test_a_thread_keeps_its_room_until_it_is_done_and_not_until_its_client_has_left() -> None:
    one, go, started = budget(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go.wait()

    with ThreadPoolExecutor(1) as threads:
        running = asyncio.create_task(one.in_thread(threads, 9 * MIB, "one", work))
        await asyncio.to_thread(started.wait)
        queued = asyncio.create_task(one.in_thread(threads, 9 * MIB, "two", work))
        await asyncio.sleep(0)
        assert one.used[Use.WORK] == 18 * MIB
        running.cancel()
        queued.cancel()
        await asyncio.gather(running, queued, return_exceptions=True)
        assert one.used[Use.WORK] == 9 * MIB  # the one that had not begun never does
        go.set()
    await asyncio.sleep(0)
    assert is_empty(one)


class Text(str):
    """A text that can be watched."""


async def test_who_leaves_the_line_for_a_thread_leaves_nothing_there() -> None:
    one, go = budget(), threading.Event()
    text = Text("to be tokenised")
    kept = weakref.ref(text)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(go.wait)
        try:
            queued = asyncio.create_task(one.in_thread(threads, MIB, "text", text.split))
            await asyncio.sleep(0)
            del text
            queued.cancel()
            await asyncio.gather(queued, return_exceptions=True)
            del queued
            gc.collect()
            assert is_empty(one)
            assert kept() is None
        finally:
            go.set()


async def test_what_fails_gives_its_room_back() -> None:
    one = budget()
    with ThreadPoolExecutor(1) as threads, pytest.raises(ZeroDivisionError):
        await one.in_thread(threads, MIB, "failing", lambda: 1 // 0)
    with pytest.raises(RuntimeError):
        await one.in_thread(threads, MIB, "after the end", lambda: 1)
    assert is_empty(one)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2 * HELD), st.sampled_from(Use))))
def test_whatever_is_held_the_sum_stays_in_the_budget_and_returns_to_nothing(
    changes: list[tuple[int, int, Use]],
) -> None:
    one = budget()
    holdings = [one.hold(Use.BODIES) for _ in range(5)]
    for index, nbytes, use in changes:
        before = holdings[index].nbytes
        try:
            holdings[index].hold(nbytes, Use.REQUESTS if use is Use.WORK else use)
        except QuireError:
            assert holdings[index].nbytes == before
        assert sum(one.used.values()) == sum(holding.nbytes for holding in holdings) <= HELD
    for holding in holdings:
        with holding:
            pass
    assert is_empty(one)


def test_what_is_given_back_is_heard_of() -> None:
    heard: list[int] = []
    one = HostBudget(80 * MIB, heard.append)
    with one.hold(Use.BODIES) as body:
        body.hold(5)
        body.hold(3, Use.REQUESTS)
    assert heard == [2, 3]


@pytest.mark.parametrize(
    ("asked", "free", "body", "due"),
    [
        (None, 970 * MIB, 4 * MIB, LEAST_BYTES),
        (None, 4096 * MIB, 4 * MIB, 512 * MIB),
        (None, 64 * 2**30, 4 * MIB, MOST_BYTES),
        (None, 970 * MIB, 64 * MIB, 512 * MIB),
        (256 * MIB, 970 * MIB, 4 * MIB, 256 * MIB),
    ],
)
def test_auto_is_an_eighth_of_the_free_memory(
    asked: int | None, free: int, body: int, due: int
) -> None:
    assert api_memory(asked, free, body) == due


def test_a_budget_that_holds_no_body_is_refused_at_the_start() -> None:
    with pytest.raises(StartupError, match=r"--api-memory 100MiB .*--max-body-size 4MiB.*128"):
        api_memory(100 * MIB, 970 * MIB, 4 * MIB)
    with pytest.raises(StartupError, match=r"--max-body-size 1GiB"):
        api_memory(2**30, 2**40, 2**30)

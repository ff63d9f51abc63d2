"""From when on an engine that stands still is late, doubted and lost. Time is counted by looks."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from itertools import count, repeat

import pytest

from server.client.process_activity import Activity, activity_of
from server.client.stillness import Patience, Standing, Stillness
from server.engine.events import StepStats
from server.engine.step_plan import StepResult
from server.execution.warm_up import step_seconds

LOOK_S = 0.25


def engine(activity: Iterator[int] | None = None, *, largest_step_s: float = 0.0) -> Stillness:
    """One that serves; by default its process neither computes nor reads."""
    counters = activity or repeat(0)
    it = Stillness(Patience(), lambda: (next(counters),))
    it.begin_serving(largest_step_s)
    it.look(LOOK_S, 0)
    return it


def step(seconds: float) -> StepStats:
    return StepStats(0, 1, 1, 0, 0, 0, 0, seconds, seconds, 0.0)


def seconds_until(it: Stillness, standing: Standing) -> float:
    """How long it stands still until it is ``standing``."""
    for looks in count(1):
        if it.look(LOOK_S, 0) >= standing:
            return looks * LOOK_S
    raise AssertionError("it is never")


def test_an_engine_that_does_nothing_is_late_after_a_second_where_steps_are_short() -> None:
    it = engine()
    it.note_frame(step(0.02))
    it.look(LOOK_S, 0)
    assert seconds_until(it, Standing.LATE) == 1.0


def test_a_measured_step_that_is_long_is_waited_for_four_times() -> None:
    it = engine()
    it.note_frame(step(3.0))
    it.look(LOOK_S, 0)
    assert seconds_until(it, Standing.LATE) == 12.0
    it = engine(largest_step_s=3.0)
    assert seconds_until(it, Standing.LATE) == 12.0, "by the warm-up, before there was a step"


def test_a_step_is_no_longer_for_a_halt_in_it() -> None:
    """Stopped for 50 s, and going on: the next halt was told after 200 s, and ended after 800."""
    activity = [0]
    it = Stillness(Patience(), lambda: (activity[0],))
    it.begin_serving(0.0)
    for _ in range(int(50 / LOOK_S) + 1):
        it.look(LOOK_S, 0)
    activity[0] += 1
    it.look(LOOK_S, 0)
    it.note_frame(step(50.5))
    it.look(LOOK_S, 0)
    assert it.longest.seconds <= 0.5
    assert seconds_until(it, Standing.LATE) <= 2.0


def test_the_warm_up_of_one_layer_tells_how_long_all_of_them_take() -> None:
    assert step_seconds(StepResult(0, (), forward_seconds=0.5, sample_seconds=0.25), 12) == 6.25


def test_a_long_step_is_forgotten_when_steps_have_been_short_for_a_while() -> None:
    it = engine()
    it.note_frame(step(3.0))
    for _ in range(2):
        it.look(300.0, 1)
        it.note_frame(step(0.02))
        it.look(LOOK_S, 0)
    assert seconds_until(it, Standing.LATE) == 1.0


def test_who_computes_for_long_is_given_more_time_and_not_for_ever() -> None:
    """A first step compiles kernels, a decode step captures a graph, a context has grown."""
    it = engine(count())
    assert seconds_until(it, Standing.LATE) == 10.0
    assert seconds_until(it, Standing.DOUBTED) == 20.0
    assert seconds_until(it, Standing.LOST) == 30.0


def test_a_silent_engine_is_doubted_and_lost_at_stated_times() -> None:
    it = engine()
    assert [seconds_until(it, at) for at in (Standing.DOUBTED, Standing.LOST)] == [30.0, 30.0]
    it = engine(largest_step_s=10.0)
    assert [seconds_until(it, at) for at in (Standing.DOUBTED, Standing.LOST)] == [120.0, 40.0]
    assert "no progress for 160 s; its longest step took 10.0 s" in it.reason


@pytest.mark.parametrize("sign", ["heartbeat", "frame"])
def test_progress_ends_all_doubt_at_once(sign: str) -> None:
    it = engine()
    seconds_until(it, Standing.DOUBTED)
    if sign == "frame":
        it.note_frame()
    assert it.look(LOOK_S, int(sign == "heartbeat")) is Standing.MOVES
    assert it.still_s == it.idle_s == 0.0


def test_what_a_load_took_is_not_held_against_the_engine_that_is_ready() -> None:
    it = Stillness(Patience(), lambda: ())
    for _ in range(int(100 / LOOK_S)):
        it.look(LOOK_S, 0)
    it.begin_serving(0.0)
    assert it.standing is Standing.MOVES


def test_an_engine_that_loads_is_lost_when_it_reads_and_computes_nothing() -> None:
    it = Stillness(Patience(), lambda: (5, 5))
    assert seconds_until(it, Standing.LOST) == 120.0
    assert "read no bytes and computed nothing for 120 s" in it.reason


def test_an_engine_that_loads_from_a_slow_disk_is_never_lost() -> None:
    """A byte in 119 seconds, for a few hours; the heartbeat of the one before it does not count."""
    reads = (number for number in count() for _ in range(int(119 / LOOK_S)))
    it = Stillness(Patience(), lambda: (next(reads),))
    for _ in range(int(20_000 / LOOK_S)):
        assert it.look(LOOK_S, 7) is Standing.MOVES


def test_a_report_of_progress_while_loading_counts() -> None:
    it = Stillness(Patience(), lambda: ())
    for _ in range(10):
        for _ in range(int(100 / LOOK_S)):
            it.look(LOOK_S, 0)
        it.note_frame()
        assert it.look(LOOK_S, 0) is Standing.MOVES


def test_the_kernel_tells_of_a_byte_that_is_read_and_of_a_process_that_is_stopped() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        _echo(cat)
        before = activity_of(cat.pid)
        _echo(cat)
        assert activity_of(cat.pid) != before
        cat.send_signal(signal.SIGSTOP)
        os.waitpid(cat.pid, os.WUNTRACED)
        stopped: set[Activity] = {activity_of(cat.pid) for _ in range(3)}
        assert len(stopped) == 1
        cat.send_signal(signal.SIGCONT)
        cat.stdin.close()
    assert activity_of(cat.pid) == (), "of a process that is gone"


def test_what_a_compiler_leaves_to_a_process_of_its_own_counts() -> None:
    """gcc starts cc1 and waits: a kernel's first compilation made the engine late."""
    started = ["sh", "-c", "cat; :"]  # with a command behind it a shell does not become the first
    with subprocess.Popen(
        ["sh", "-c", f"{shlex.join(started)}; :"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as shell:
        _echo(shell)
        before = activity_of(shell.pid)
        _echo(shell)
        assert activity_of(shell.pid) != before
        assert shell.stdin is not None
        shell.stdin.close()


def _echo(cat: subprocess.Popen[bytes]) -> None:
    assert cat.stdin is not None
    assert cat.stdout is not None
    cat.stdin.write(b"x")
    cat.stdin.flush()
    assert cat.stdout.read(1) == b"x"

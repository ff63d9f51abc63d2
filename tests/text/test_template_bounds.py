"""The bounds of a rendering: processor time, time on the wall, turns; and what a kill leads to.

Nothing here waits for time to pass: a worker is made to stand still by a signal, and the clocks are
the test's own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from server.errors import ErrorCode, QuireError
from server.text import template_process
from server.text.chat_template import ChatTemplate
from server.text.template_process import Clocks, TemplateLimits, TemplateProcess, process_seconds

USER = {"role": "user", "content": "hello"}
LARGE = {"role": "user", "content": "x" * 1000}
PATIENT = TemplateLimits(cpu_seconds=30, wall_seconds=60, wait_seconds=600, large=500)
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ECHO = "{{ messages[0].role }}"
Started = list[TemplateProcess]


class Watch:
    """A clock that the test moves. It tells how often it was looked at."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step, self.looks = 0.0, step, 0
        self._reached: list[tuple[int, asyncio.Event]] = []

    def __call__(self) -> float:
        self.looks += 1
        self.now += self.step
        for looks, event in self._reached:
            if self.looks >= looks:
                event.set()
        return self.now

    async def looked(self, times: int) -> None:
        """Returns when it was looked at so many times more."""
        event = asyncio.Event()
        self._reached.append((self.looks + times, event))
        await event.wait()


@pytest.fixture(autouse=True)
def frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "_CHECK_S", 0.01)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Every process that was started."""
    processes: Started = []
    spawn = TemplateProcess.spawn

    async def counted(*given: Any) -> TemplateProcess:
        process = await spawn(*given)
        processes.append(process)
        return process

    monkeypatch.setattr(TemplateProcess, "spawn", counted)
    return processes


@asynccontextmanager
async def running(
    source: str = ECHO, limits: TemplateLimits = PATIENT, **clocks: Any
) -> AsyncIterator[ChatTemplate]:
    template = ChatTemplate(source, limits=limits, clocks=Clocks(**clocks))
    try:
        await template.start()
        yield template
    finally:
        await template.close()


async def test_a_process_that_the_machine_gives_no_time_is_waited_for(started: Started) -> None:
    wall = Watch()
    async with running(wall=wall) as template:
        os.kill(started[0].pid, signal.SIGSTOP)
        chat = asyncio.create_task(template.render([USER]))
        await wall.looked(50)
        assert not chat.done()
        os.kill(started[0].pid, signal.SIGCONT)
        assert await chat == "user"
        assert len(started) == 1


async def test_a_process_that_stands_still_for_long_is_replaced_and_the_chat_tried_again(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    wall = Watch()
    async with running(wall=wall) as template:
        os.kill(started[0].pid, signal.SIGSTOP)
        chat = asyncio.create_task(template.render([USER]))
        await wall.looked(3)
        wall.now += 61
        assert await chat == "user"
        assert [process.alive for process in started] == [False, True]
    [told] = [record.getMessage() for record in caplog.records]
    assert "not done after 61 s, in which it got 0.0" in told
    assert told.endswith("retrying once")


async def test_a_machine_that_is_too_busy_for_both_tries_is_told_as_such(
    started: Started,
) -> None:
    wall = Watch()
    async with running(wall=wall) as template:
        os.kill(started[0].pid, signal.SIGSTOP)
        wall.step = 100
        with pytest.raises(
            QuireError, match="tried 2 times: it was not done after 100 s"
        ) as raised:
            await template.render([USER])
        assert raised.value.code is ErrorCode.TEMPLATE_UNAVAILABLE
        assert raised.value.retry_after
        assert "The machine is too busy" in raised.value.message
        wall.step = 0
        assert await template.render([USER]) == "user"


async def test_a_process_that_was_killed_is_replaced_and_the_chat_tried_again(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    wall = Watch()
    async with running(wall=wall) as template:
        os.kill(started[0].pid, signal.SIGSTOP)
        chat = asyncio.create_task(template.render([USER]))
        await wall.looked(3)
        os.kill(started[0].pid, signal.SIGKILL)
        assert await chat == "user"
    [told] = [record.getMessage() for record in caplog.records]
    assert "its process was ended by SIGKILL" in told


async def test_a_template_that_uses_up_its_time_is_not_tried_again(
    started: Started,
) -> None:
    """It would use it up again: whoever can make it loop would get twice the machine."""
    source = "{% if messages[0].content == 'hello' %}" + LOOP + "{% endif %}done"
    limits = replace(PATIENT, cpu_seconds=0.7)
    async with running(source, limits=limits, wall=Watch()) as template:
        with pytest.raises(
            QuireError, match=r"used \d\.\d s of processor time and may use 0.7 s"
        ) as e:
            await template.render([USER])
        assert e.value.code is ErrorCode.INTERNAL
        assert [process.alive for process in started] == [False]
        assert await template.render([LARGE]) == "done"


async def test_each_rendering_has_processor_time_of_its_own(started: Started) -> None:
    """The process's clock runs on; a rendering's share begins where the last one ended."""
    used = Watch()
    async with running(cpu=lambda pid: used()) as template:
        for _ in range(5):
            used.now += PATIENT.cpu_seconds
            assert await template.render([USER]) == "user"
        assert len(started) == 1


def test_a_processes_clock_is_its_processor_time() -> None:
    before = time.process_time()
    between = process_seconds(os.getpid())
    assert before <= between <= time.process_time()
    assert process_seconds(2**22 + 1) == 0.0  # beyond any process's id


async def test_large_conversations_leave_a_worker_to_the_others(started: Started) -> None:
    async with running(wall=Watch()) as template:
        os.kill(started[0].pid, signal.SIGSTOP)
        large = [asyncio.create_task(template.render([LARGE])) for _ in range(4)]
        await asyncio.sleep(0)
        for _ in range(3):
            assert await template.render([USER]) == "user"
        assert not any(task.done() for task in large)
        os.kill(started[0].pid, signal.SIGCONT)
        assert await asyncio.gather(*large) == ["user"] * 4


async def test_a_chat_that_gets_no_turn_is_told_to_come_back(started: Started) -> None:
    limits = replace(PATIENT, workers=1, wait_seconds=0)
    async with running(limits=limits, wall=Watch()) as template:
        os.kill(started[0].pid, signal.SIGSTOP)
        first = asyncio.create_task(template.render([USER]))
        await asyncio.sleep(0)
        with pytest.raises(QuireError, match="waited 0 s for its turn") as raised:
            await template.render([USER])
        assert raised.value.code is ErrorCode.QUEUE_TIMEOUT
        assert raised.value.retry_after
        os.kill(started[0].pid, signal.SIGCONT)
        assert await first == "user"


async def test_a_machine_without_room_for_a_process_refuses_chats_and_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def none_left(*given: Any, **options: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    told = "could not be started: Too many open files"
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", none_left)
        async with running() as template:
            with pytest.raises(QuireError, match=told) as refused:
                await template.render([USER])
    assert refused.value.code is ErrorCode.TEMPLATE_UNAVAILABLE
    assert told in caplog.records[0].getMessage()
    assert not template.is_broken
    try:
        await template.start()
        assert await template.render([USER]) == "user"
    finally:
        await template.close()


async def test_a_template_that_does_not_compile_costs_one_process(started: Started) -> None:
    async with running("{% if %}") as template:
        for _ in range(3):
            with pytest.raises(QuireError, match="line 1: Expected an expression"):
                await template.render([USER])
        assert len(started) == 1

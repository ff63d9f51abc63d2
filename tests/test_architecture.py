"""ARCHITECTURE.md's two lists of calls are true: the names exist, and one request makes the calls.

A request for one token goes through the whole server: its own sockets, the API process's parts and
the engine's loop, which runs in a thread here. A profile function notes every call of a listed
function; the first call of each must come in the order of the lists. A list that is out of date is
mended in ARCHITECTURE.md; nothing here names a call.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

import pytest
import torch

from server.app.api_process import HttpServer
from server.client.process import EngineProcess
from server.client.supervisor import EngineState
from server.config.server_config import resolve
from server.ipc.engine_info import GAUGE_NAMES
from server.ipc.frames import Ready, Start, encode
from server.ipc.gauges import GaugeBlock
from server.startup.descriptors import ConnectionLimits
from server.startup.listener import bind
from server.startup.model_info import engine_settings, read_model
from server.worker.build import build_engine
from server.worker.channel import EngineChannel
from server.worker.gauge_publisher import GaugePublisher
from server.worker.loop import apply_command, run_engine

DOCUMENT = Path(__file__).parents[1] / "ARCHITECTURE.md"
PROMPT, TOKEN = "The way of one prompt", "The way of one token"
MOST_CALLS = 15
# An idle engine's loop calls some of the functions too: its thread counts from this call on.
WAKES = f"{apply_command.__module__}:{apply_command.__qualname__}"


def listed(title: str) -> list[str]:
    """``module:function`` of each numbered line under the title, in order."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([\w.]+:[\w.]+)`", section, re.MULTILINE)


CALLS = listed(PROMPT) + listed(TOKEN)


@pytest.mark.parametrize("title", [PROMPT, TOKEN])
def test_each_way_is_short(title: str) -> None:
    assert 10 <= len(listed(title)) <= MOST_CALLS


@pytest.mark.parametrize("name", CALLS)
def test_each_call_exists(name: str) -> None:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    assert callable(found)
    assert f"{found.__module__}:{found.__qualname__}" == name


@pytest.fixture
def _left_as_it_was() -> Iterator[None]:
    """An engine sets the process's threads, and freezes its objects: this one leaves the process to
    others."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # the rest, as tests/conftest.py has it


@pytest.mark.usefixtures("_left_as_it_was")
def test_one_request_makes_the_calls_in_the_order_of_the_lists() -> None:
    trace = Trace({*CALLS, WAKES})
    with trace.in_new_threads():
        answer = asyncio.run(served(trace))
    assert answer["usage"]["completion_tokens"] == 1
    assert trace.first_calls(CALLS) == CALLS


class Trace:
    """Notes calls of the wanted functions, while it is on, in the order in which they are made."""

    def __init__(self, wanted: set[str]) -> None:
        self._wanted = wanted
        self._names: dict[CodeType, str | None] = {}
        self._engine: int | None = None
        self._engine_wakes = False
        self.is_on = False
        self.calls: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if not self.is_on or event != "call":
            return
        code = frame.f_code
        if code not in self._names:
            name = f"{frame.f_globals.get('__name__')}:{code.co_qualname}"
            self._names[code] = name if name in self._wanted else None
        found = self._names[code]
        if found is None:
            return
        self._engine_wakes |= found == WAKES
        if self._engine_wakes or threading.get_ident() != self._engine:
            self.calls.append(found)

    @contextmanager
    def in_new_threads(self) -> Iterator[None]:
        """In this thread, and in those that are begun meanwhile."""
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(cast(Any, None))

    def note_engine(self) -> None:
        self._engine = threading.get_ident()

    def first_calls(self, names: list[str]) -> list[str]:
        return list(dict.fromkeys(name for name in self.calls if name in names))


class EngineThread:
    """The engine process's loop in a thread. Stands in for the process where one is ended."""

    def __init__(self, gauges: GaugeBlock, note: Callable[[], None]) -> None:
        self.connection, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.pid = os.getpid()
        self._gauges, self._note = gauges, note
        self._thread = threading.Thread(target=self._run, name="engine")
        self._thread.start()

    def kill(self) -> None:
        self._theirs.shutdown(socket.SHUT_RDWR)

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        self._theirs.close()
        return 0

    def _run(self) -> None:
        self._note()
        channel = EngineChannel(self._theirs)
        (start,) = channel.receive(60)
        assert isinstance(start, Start)
        engine = build_engine(start.settings, lambda text: None)
        channel.send(Ready(engine.facts))
        run_engine(
            engine.core, channel, GaugePublisher(engine.core, engine.accountant, self._gauges)
        )


async def served(trace: Trace) -> dict[str, Any]:
    """The last event of a stream of one token, from a server that lives for it alone."""
    config = resolve({"port": "0", "threads": "1", "kv-cache-memory": "8MiB"}, environment={})
    gauges = GaugeBlock.create(GAUGE_NAMES)
    engine = EngineThread(gauges, trace.note_engine)
    process = EngineProcess(cast(Any, engine), engine.connection, FileIO(os.devnull, "w"))
    listener = bind("127.0.0.1", 0)
    model = read_model(config)
    engine.connection.sendall(encode(Start(engine_settings(config, model))))
    server = HttpServer(
        config,
        model,
        ConnectionLimits(8, 8),
        listener,
        gauges,
        lambda: process,
        time.monotonic(),
    )
    serving = asyncio.create_task(server.run(process))
    try:
        async with asyncio.timeout(120):
            while server.supervisor.state is not EngineState.READY and not serving.done():
                await asyncio.sleep(0.01)
            return await streamed(listener.getsockname()[1], trace)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()
        gauges.close()


async def streamed(port: int, trace: Trace) -> dict[str, Any]:
    wish = {"prompt": "def add(a, b):", "max_tokens": 1, "stream": True, "temperature": 0}
    body = json.dumps({**wish, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    trace.is_on = True
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    answer = await reader.readuntil(b"data: [DONE]")
    trace.is_on = False
    writer.close()
    await writer.wait_closed()
    return cast(dict[str, Any], json.loads(re.findall(rb"^data: (\{.*\})", answer, re.M)[-1]))

"""The application on a real socket, in a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from server.api.app import create_app
from server.api.http import serve
from server.api.state import ApiState
from server.startup.listener import bind


@contextmanager
def served(state: ApiState, port: int = 0) -> Iterator[int]:
    """Its port on 127.0.0.1, any where ``port`` is 0. Ends when the application has."""
    ready = threading.Event()
    listener = bind("127.0.0.1", port)
    server = serve(create_app(state), state.limits, state.metrics, drain_timeout_s=1)

    async def run() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        ready.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        if not ready.wait(60):
            raise TimeoutError("the application has not started")
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)

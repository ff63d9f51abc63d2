"""The composition root of the API process: every part is made and joined here, and nowhere else.

    main thread:  spawn engine -> check the folder, plan -> bind -> tell settings -> the web parts
    engine:                       import torch ---------------------------> load -> Ready

The engine's process is started first: torch takes longer to import than the folder to check. It is
told nothing before that has passed, and is killed where something is refused. Then it loads while
the web packages and the tokenizer come here. To read a good folder takes some 20 ms; a bad one
takes two seconds at most, by the bounds of weights.checkpoint.limits.

Start-up is over when the engine says Ready; requests before that get a 503. SIGTERM or SIGINT
drains: new requests get a 503, open ones finish for at most --drain-timeout, the exit code is 0. A
second signal ends everything at once. Before there is a server, nothing is open to drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from server import logs
from server.client.process import EngineProcess, spawn_engine
from server.config.server_config import ServerConfig
from server.errors import StartupError
from server.garbage import lasting
from server.ipc.engine_info import GAUGE_NAMES
from server.ipc.gauges import GaugeBlock
from server.startup.descriptors import connection_limits
from server.startup.listener import bind, explain

ENGINE_COMMAND = (sys.executable, "-m", "server.worker")
# -m looks in the working directory first: it is ours, not the user's, who may have a folder of the
# same name there.
ENGINE_FOLDER = Path(__file__).resolve().parents[2]


def serve(config: ServerConfig) -> int:
    """Runs the server until it is told to stop; returns the exit code.

    Raises:
        StartupError: it cannot start; the message names the file, the tensor or the option.
    """
    started = time.monotonic()
    logs.configure(config.log_format)
    starting = _Starting()
    connections = connection_limits(config.max_connections)
    gauges = GaugeBlock.create(GAUGE_NAMES)

    def spawn() -> EngineProcess:
        return spawn_engine(ENGINE_COMMAND, gauges.fd, ENGINE_FOLDER)

    first = starting.spawn(spawn)  # it imports torch while this process does all of the rest
    try:
        from server.ipc.frames import Start, encode
        from server.startup.model_info import engine_settings, read_model  # the families, late

        model = read_model(config)
        with contextlib.closing(_listen(config)) as listener:
            with contextlib.suppress(ConnectionError):  # it has died: its supervisor says of what
                first.connection.sendall(encode(Start(engine_settings(config, model))))
            with lasting():
                from server.app.api_process import HttpServer  # the web packages, late

                server = HttpServer(config, model, connections, listener, gauges, spawn, started)
            return asyncio.run(server.run(first))
    finally:
        first.close()
        gauges.close()


class _Starting:
    """SIGTERM and SIGINT until HttpServer takes them: this process ends at once, and its engine."""

    def __init__(self) -> None:
        self._engine: EngineProcess | None = None
        self._spawning = False
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def spawn(self, spawn: Callable[[], EngineProcess]) -> EngineProcess:
        """Starts the engine. A signal meanwhile waits until it is known which process to end."""
        self._spawning = True
        try:
            self._engine = spawn()
        finally:
            self._spawning = False
            if self._asked:
                self._end()
        return self._engine

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if not self._spawning:
            self._end()

    def _end(self) -> NoReturn:
        if self._engine is not None and self._engine.popen.returncode is None:
            os.kill(self._engine.pid, signal.SIGKILL)  # not reaped, so the number is still its own
        os._exit(0)


def _listen(config: ServerConfig) -> socket.socket:
    try:
        return bind(config.host, config.port)
    except OSError as error:
        raise StartupError(
            f"--host {config.host} --port {config.port}: {explain(error, config.host, config.port)}"
        ) from None

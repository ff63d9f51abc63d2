"""The composition root of the API process: every part is made and joined here, and nowhere else.

    main thread:  spawn engine --> check the folder, plan --> bind --> import the web parts
    engine:            import torch ---------------> settings --> load --> Ready

Start-up is over when the engine says Ready; requests before that get a 503. SIGTERM or SIGINT
drains: new requests get a 503, open ones finish for at most --drain-timeout, the exit code is 0. A
second signal ends everything at once. Before there is a server, nothing is open to drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

from server import logs
from server.config import ServerConfig
from server.engine_facts import GAUGE_NAMES
from server.errors import StartupError
from server.ipc.gauges import GaugeBlock
from server.ipc.process import EngineProcess, spawn_engine
from server.listener import bind, explain
from server.model_facts import read_model

ENGINE_COMMAND = (sys.executable, "-m", "server.engine_process")
# -m looks in the working directory first: it is ours, not the user's, who may have a folder of the
# same name there.
ENGINE_FOLDER = Path(__file__).resolve().parents[1]


def serve(config: ServerConfig) -> int:
    """Runs the server until it is told to stop; returns the exit code.

    Raises:
        StartupError: it cannot start; the message names the file, the tensor or the option.
    """
    started = time.monotonic()
    logs.configure(config.log_format)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_starting)
    gauges = GaugeBlock.create(GAUGE_NAMES)

    def spawn() -> EngineProcess:
        return spawn_engine(ENGINE_COMMAND, gauges.fd, ENGINE_FOLDER)

    first = spawn()  # it imports torch while this process reads the folder
    try:
        model = read_model(config)
        with contextlib.closing(_listen(config)) as listener:
            from server.http_server import HttpServer  # the web packages, late

            server = HttpServer(config, model, listener, gauges, spawn, started)
            return asyncio.run(server.run(first))
    finally:
        first.close()
        gauges.close()


def _stop_starting(number: int, frame: object) -> NoReturn:
    """A signal's handler until HttpServer sets its own."""
    sys.exit(0)


def _listen(config: ServerConfig) -> socket.socket:
    try:
        return bind(config.host, config.port)
    except OSError as error:
        raise StartupError(
            f"--host {config.host} --port {config.port}: {explain(error, config.host, config.port)}"
        ) from None

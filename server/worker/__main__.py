"""The engine process: ``python -m server.worker SOCKET GAUGES DEATH_PIPE PARENT``.

    tie to the parent -> import torch -> settings arrive -> base reading -> load and build
        -> Ready -> the engine's loop

Signals that ask a service to stop go to every process of its group, so they are ignored here: the
API process drains, then closes the socket, and that ends this process.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable

from server import logs
from server.client.process import die_with_parent
from server.config.server_config import limit_thread_spinning
from server.errors import StartupError
from server.garbage import lasting
from server.ipc.engine_info import GAUGE_NAMES, EngineSettings
from server.ipc.frames import Failed, FrameError, Progress, Ready, Start
from server.ipc.gauges import GaugeBlock
from server.memory.accounting.gpu_device import torch_has_cuda
from server.memory.accounting.process import limit_malloc_arenas
from server.worker.channel import ChannelClosed, EngineChannel
from server.worker.late_imports import UNUSED_ON_A_CPU, defer
from server.worker.loop import run_engine

EXIT_STARTUP = 2  # as the server's own
_START_WAIT_S = 60.0


def main(arguments: list[str]) -> int:
    """Runs until the parent closes the socket; returns the exit code."""
    socket_fd, gauges_fd, death_pipe, parent = (int(text) for text in arguments)
    die_with_parent(parent, death_pipe)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    limit_malloc_arenas()
    limit_thread_spinning()
    if not torch_has_cuda():
        defer(UNUSED_ON_A_CPU)
    channel = EngineChannel(socket.socket(fileno=socket_fd))
    try:
        _serve(channel, GaugeBlock(gauges_fd, GAUGE_NAMES))
    except StartupError as error:
        channel.send(Failed(str(error)))
        return EXIT_STARTUP
    except ChannelClosed:
        return 0
    return 0


def _serve(channel: EngineChannel, gauges: GaugeBlock) -> None:
    with lasting():
        from server.worker.build import build_engine  # torch, while the parent plans
        from server.worker.gauge_publisher import GaugePublisher

    settings = _receive_start(channel)
    logs.configure(settings.log_format)
    engine = build_engine(settings, _progress(channel))
    publish = GaugePublisher(engine.core, engine.accountant, gauges)
    publish()
    channel.send(Ready(engine.facts))
    run_engine(engine.core, channel, publish)


def _receive_start(channel: EngineChannel) -> EngineSettings:
    commands = channel.receive(_START_WAIT_S)
    while not commands:
        commands = channel.receive(_START_WAIT_S)
    match commands:
        case [Start(settings)]:
            return settings
    raise FrameError(f"expected one Start, not {[type(command).__name__ for command in commands]}")


def _progress(channel: EngineChannel) -> Callable[[str], None]:
    return lambda text: channel.send(Progress(text))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

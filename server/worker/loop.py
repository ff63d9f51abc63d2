"""The engine process's loop: take commands, step, send one frame, publish the gauges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from server.engine.events import EngineFrame, RequestMemory
from server.engine.request import EngineRequest
from server.ipc.frames import (
    Abort,
    AskMemory,
    Command,
    Drain,
    Finish,
    FrameError,
    Memory,
    Step,
    Submit,
)
from server.worker.channel import ChannelClosed, EngineChannel

IDLE_TICK_S = 0.1  # an idle engine publishes its gauges, and so its heartbeat, this often


class Core(Protocol):
    """The part of the engine core that a loop drives (server.engine.core.EngineCore)."""

    @property
    def has_work(self) -> bool: ...

    def submit(self, requests: Sequence[EngineRequest]) -> None: ...

    def abort(self, request_ids: Sequence[str]) -> None: ...

    def finish(self, request_id: str, choice: int, num_tokens: int) -> None: ...

    def drain(self) -> None: ...

    def memory_of(self, request_ids: Sequence[str]) -> tuple[RequestMemory, ...]: ...

    def step(self) -> EngineFrame | None: ...


def run_engine(core: Core, channel: EngineChannel, publish: Callable[[], None]) -> None:
    """Serves until the API process closes its end.

    ``publish`` is called after each step and each idle tick. What a step raises ends the loop: the
    process dies, its requests end in an error, and it is started again.
    """
    publish()
    while True:
        try:
            for command in channel.receive(0 if core.has_work else IDLE_TICK_S):
                answer = apply_command(core, command)
                if answer is not None:
                    channel.send(answer)
            frame = core.step()
            if frame is not None:
                channel.send(Step(frame))
        except ChannelClosed:
            return
        publish()


def apply_command(core: Core, command: Command) -> Memory | None:
    """Hands one command to the core; returns the answer to a question.

    Raises FrameError for a second Start.
    """
    match command:
        case Submit(requests):
            core.submit(requests)
        case Abort(request_ids):
            core.abort(request_ids)
        case Finish(request_id, choice, num_tokens):
            core.finish(request_id, choice, num_tokens)
        case Drain():
            core.drain()
        case AskMemory(number, request_ids):
            return Memory(number, core.memory_of(request_ids))
        case _:
            raise FrameError(f"unexpected {type(command).__name__} after the start")
    return None

"""An engine process without a model: answers requests with the tokens 1, 2, 3, ...

Run as ``fake_engine BEHAVIOUR SOCKET GAUGES DEATH_PIPE PARENT``; the behaviour says how it ends.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence

from server.client.process import die_with_parent
from server.engine.events import Accepted, ChoiceOutput, EngineFrame, Refused, RequestMemory
from server.engine.request import EngineError, EngineRequest, FinishReason
from server.ipc.engine_info import EngineInfo
from server.ipc.frames import Failed, Ready
from server.ipc.gauges import GaugeBlock
from server.worker.channel import EngineChannel
from server.worker.loop import run_engine

NAMES = ("heartbeat",)
FACTS = EngineInfo(
    weights={"embedding": 1},
    weights_format="f32",
    load_seconds=0.0,
    ready_seconds=0.0,
    torch_version="none",
    num_threads=1,
    cpu_capability="none",
)


class CountingCore:
    """Each step gives every open request its next token, up to max_tokens."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._open: dict[str, tuple[EngineRequest, int]] = {}
        self._accepted: list[Accepted] = []
        self._refused: list[Refused] = []
        self._drains = False
        self.steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._open or self._accepted or self._refused)

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        ids = tuple(request.request_id for request in requests)
        if self._drains:
            self._refused.append(Refused(ids, EngineError.SHUTTING_DOWN, "draining"))
        elif requests[0].prompt_token_ids == (666,):
            self._refused.append(
                Refused(ids, EngineError.QUEUE_FULL, "the queue is full", retry_after=7)
            )
        elif requests[0].prompt_token_ids == (667,):
            os._exit(9)
        elif requests[0].prompt_token_ids == (668,):
            time.sleep(3600)
        else:
            self._accepted.append(Accepted(ids))
            self._open.update({request.request_id: (request, 0) for request in requests})

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._open.pop(request_id, None)

    def finish(self, request_id: str, choice: int, num_tokens: int) -> None:
        self._open.pop(request_id, None)

    def drain(self) -> None:
        self._drains = True

    def memory_of(self, request_ids: Sequence[str]) -> tuple[RequestMemory, ...]:
        known = [one for one in request_ids if one in self._open]
        return tuple(RequestMemory(one, 64, 2, 3, 1, 1.5, 4.5) for one in known)

    def step(self) -> EngineFrame | None:
        self.steps += 1
        if not self.has_work:
            return None
        time.sleep(self._step_s)
        outputs = tuple(self._next(*entry) for entry in self._open.values())
        frame = EngineFrame(tuple(self._accepted), tuple(self._refused), (), outputs)
        self._accepted, self._refused = [], []
        return frame

    def _next(self, request: EngineRequest, count: int) -> ChoiceOutput:
        done = count + 1 >= request.sampling.max_tokens
        self._open[request.request_id] = (request, count + 1)
        return ChoiceOutput(
            request.request_id,
            0,
            (count + 1,),
            finish_reason=FinishReason.LENGTH if done else None,
        )


class ForgetfulCore(CountingCore):
    """As the real one: a request is gone once it has finished."""

    def step(self) -> EngineFrame | None:
        frame = super().step()
        if frame is not None:
            self.abort([output.request_id for output in frame.choices if output.finish_reason])
        return frame


def main() -> int:
    behaviour = sys.argv[1]
    socket_fd, gauges_fd, death_pipe, parent = (int(text) for text in sys.argv[2:6])
    die_with_parent(parent, death_pipe)
    channel = EngineChannel(socket.socket(fileno=socket_fd))
    gauges = GaugeBlock(gauges_fd, NAMES)
    while not channel.receive(10):
        pass
    if behaviour == "refuses":
        channel.send(Failed("model.safetensors: tensor x is missing"))
        return 3
    if behaviour == "dies":
        return 5
    if behaviour == "hangs":
        time.sleep(3600)
    core = ForgetfulCore(0.02)
    channel.send(Ready(FACTS))
    if behaviour == "babbles":
        socket.socket(fileno=os.dup(socket_fd)).sendall(b"\x03\x00\x00\x00abc")
        time.sleep(3600)
    run_engine(core, channel, lambda: gauges.write({"heartbeat": core.steps}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

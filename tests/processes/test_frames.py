"""Messages cross the boundary as they are; what is no message is refused."""

from __future__ import annotations

import socket

import pytest

from server.engine.events import Accepted, ChoiceOutput, EngineFrame, Refused, StepStats
from server.engine.request import EngineError, EngineRequest, FinishReason, SamplingParams, Task
from server.engine.step_plan import LogprobArrays
from server.ipc.frames import (
    LENGTH,
    MAX_MESSAGE_BYTES,
    Abort,
    Decoder,
    Drain,
    Finish,
    FrameError,
    Step,
    Submit,
    encode,
    message_length,
)
from server.worker.channel import ChannelClosed, EngineChannel

REQUEST = EngineRequest(
    "r1",
    (1, 2, 3),
    SamplingParams(
        seed=2**63 - 1, logit_bias=((5, -1.5),), stop_token_ids=(7,), logprobs=2, temperature=0.3
    ),
    task=Task.SCORE,
    n=2,
    cache_salt="ключ",
    timeout_s=1.5,
)
ARRAYS = LogprobArrays(2, 1, b"\x00\x01", b"\xff")
FRAME = EngineFrame(
    accepted=(Accepted(("r1",)),),
    choices=(
        ChoiceOutput(
            "r1", 1, (4, 5), LogprobArrays(2, 1, b"\x00\x01", b"\xff"), FinishReason.STOP, 5
        ),
    ),
    stats=StepStats(1, 2, 3, 4, 5, 6, 7, 0.5, 0.25, 0.125, (0.1, 0.2)),
)


@pytest.mark.parametrize(
    "command", [Submit((REQUEST,)), Abort(("a", "b")), Finish("a", 3, 7), Drain()]
)
def test_a_command_comes_out_as_it_went_in(command: Submit | Abort | Finish | Drain) -> None:
    encoded = encode(command)
    assert message_length(encoded[: LENGTH.size]) == len(encoded) - LENGTH.size
    assert Decoder().command(encoded[LENGTH.size :]) == command


def test_a_frame_comes_out_as_it_went_in() -> None:
    found = Decoder().report(encode(Step(FRAME))[LENGTH.size :])
    assert found == Step(FRAME)
    assert isinstance(found, Step)
    assert found.frame.choices[0].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("reason", list(EngineError))
def test_every_engine_error_comes_out_as_it_went_in(reason: EngineError) -> None:
    ended = ChoiceOutput("r1", 0, finish_reason=FinishReason.ERROR, error_code=reason)
    frame = EngineFrame(refused=(Refused(("r2",), reason, "why"),), choices=(ended,))
    found = Decoder().report(encode(Step(frame))[LENGTH.size :])
    assert isinstance(found, Step)
    assert found.frame.refused[0].code is reason
    assert found.frame.choices[0].error_code is reason


def test_an_engine_error_that_nobody_knows_is_refused() -> None:
    whole = encode(Step(EngineFrame(refused=(Refused(("r2",), EngineError.CAPACITY, "why"),))))
    misspelt = whole.replace(b"CAPACITY", b"CAPACITE")
    assert misspelt != whole
    with pytest.raises(FrameError, match="CAPACITE"):
        Decoder().report(misspelt[LENGTH.size :])


@pytest.mark.parametrize("body", [b"", b"\xff", b"\x80", encode(Abort(("a",)))[LENGTH.size : -2]])
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        Decoder().command(body)


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(FrameError):
        Decoder().report(encode(Drain())[LENGTH.size :])


def test_a_length_beyond_the_bound_is_refused() -> None:
    with pytest.raises(FrameError):
        message_length(LENGTH.pack(MAX_MESSAGE_BYTES + 1))


def test_commands_arrive_whole_however_the_bytes_are_cut() -> None:
    ours, theirs = socket.socketpair()
    channel = EngineChannel(theirs)
    commands = [Submit((REQUEST,)), Finish("r1", 0, 5), Abort(("r1",))]
    found = []
    for byte in b"".join(encode(command) for command in commands):
        ours.send(bytes([byte]))
        found += channel.receive(0)
    assert found == commands
    assert channel.receive(0) == []
    ours.sendall(b"".join(encode(command) for command in commands))
    assert channel.receive(0) == commands
    ours.close()
    with pytest.raises(ChannelClosed):
        channel.receive(0)
    theirs.close()

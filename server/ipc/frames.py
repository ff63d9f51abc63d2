"""The messages between the two processes, and their bytes.

Each message is one msgpack map tagged with its type, behind a 4-byte little-endian length. Requests
and frames are the engine's own dataclasses, encoded as they are. Decoding checks every type; there
is not pickle.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from server.engine.events import EngineFrame, RequestMemory
from server.engine.request import EngineRequest
from server.ipc.engine_info import EngineInfo, EngineSettings

LENGTH = struct.Struct("<I")
MAX_MESSAGE_BYTES = 256 * 2**20
T = TypeVar("T")


class FrameError(Exception):
    """The other side sent an invalid message: the connection cannot be trusted any more."""


# API process -> engine process


class Start(msgspec.Struct, tag=True, frozen=True):
    """The first message: everything the engine is built from."""

    settings: EngineSettings


class Submit(msgspec.Struct, tag=True, frozen=True):
    requests: tuple[EngineRequest, ...]


class Abort(msgspec.Struct, tag=True, frozen=True):
    request_ids: tuple[str, ...]


class Finish(msgspec.Struct, tag=True, frozen=True):
    """A choice met a stop string with ``num_tokens`` of its tokens."""

    request_id: str
    choice: int
    num_tokens: int


class Drain(msgspec.Struct, tag=True, frozen=True):
    """Refuse new requests; finish what is open."""


class AskMemory(msgspec.Struct, tag=True, frozen=True):
    """What do these requests hold? Answered between two steps, by a Memory of the same number."""

    number: int
    request_ids: tuple[str, ...]


Command = Start | Submit | Abort | Finish | Drain | AskMemory

# engine process -> API process


class Progress(msgspec.Struct, tag=True, frozen=True):
    """While loading: what is being done, for the log."""

    message: str


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The engine takes requests. ``facts`` are what start-up measured."""

    facts: EngineInfo


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot start; the message names the file, the tensor or the option."""

    message: str


class Step(msgspec.Struct, tag=True, frozen=True):
    frame: EngineFrame


class Memory(msgspec.Struct, tag=True, frozen=True):
    """The live ones of the requests that were asked about."""

    number: int
    requests: tuple[RequestMemory, ...]


Report = Progress | Ready | Failed | Step | Memory


def encode(message: Command | Report) -> bytes:
    """The message with its length in front."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def message_length(prefix: bytes) -> int:
    """The body's length in bytes. Raises FrameError beyond MAX_MESSAGE_BYTES."""
    (length,) = LENGTH.unpack(prefix)
    if length > MAX_MESSAGE_BYTES:
        raise FrameError(f"a message of {length} bytes exceeds {MAX_MESSAGE_BYTES}")
    return int(length)


class Decoder:
    """Decodes one direction's messages; owns its msgspec decoders."""

    def __init__(self) -> None:
        self._commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
        self._reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)

    def command(self, body: bytes) -> Command:
        return _decode(self._commands, body)

    def report(self, body: bytes) -> Report:
        return _decode(self._reports, body)


def _decode(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise FrameError(str(error)) from error

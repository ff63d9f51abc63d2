"""The engine process's end of the socket: blocking sends, commands taken between steps."""

from __future__ import annotations

import select
import socket

from server.ipc.frames import LENGTH, Command, Decoder, Report, encode, message_length

_RECEIVE_BYTES = 2**18


class ChannelClosed(Exception):
    """The API process closed its end or is gone."""


class EngineChannel:
    """Sends reports and receives commands over one end of a socket pair.

    A send blocks while the API process is behind by more than the socket's buffer: that holds the
    engine back instead of piling frames up.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(True)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._buffer = bytearray()
        self._decoder = Decoder()

    def send(self, report: Report) -> None:
        """Raises ChannelClosed when the API process is gone."""
        try:
            self._socket.sendall(encode(report))
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self, timeout_s: float) -> list[Command]:
        """Every whole command that has arrived; waits up to ``timeout_s`` for the first bytes.

        Raises:
            ChannelClosed: the other end is closed.
            FrameError: what arrived is not a message.
        """
        wait_ms = int(timeout_s * 1000)
        while self._poll.poll(wait_ms):
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not data:
                raise ChannelClosed("end of stream")
            self._buffer += data
            wait_ms = 0
        return self._take()

    def _take(self) -> list[Command]:
        commands, start = [], 0
        while len(self._buffer) - start >= LENGTH.size:
            body = start + LENGTH.size
            end = body + message_length(bytes(self._buffer[start:body]))
            if len(self._buffer) < end:
                break
            commands.append(self._decoder.command(bytes(self._buffer[body:end])))
            start = end
        del self._buffer[:start]
        return commands

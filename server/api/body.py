"""A request's body as it arrives: held within the budget, and let go once it is parsed."""

from __future__ import annotations

from starlette.types import Receive, Scope

from server.api.middleware import header
from server.api.sizes import BODY_SHARE
from server.api.trace import ClientDisconnected
from server.host_budget import Holding


class Body:
    """The bytes of one body. They are taken once, so that nobody keeps them by a name."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    async def read(self, scope: Scope, receive: Receive, holding: Holding) -> None:
        """Reads all of it. What is announced is held before a byte of it is read.

        Raises:
            ClientDisconnected
            QuireError: there is no room for so much; it came too slowly, or is too large.
        """
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdigit():
            holding.hold(int(int(announced) * BODY_SHARE))
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            self._buffer += message.get("body", b"")
            holding.hold(max(holding.nbytes, int(len(self._buffer) * BODY_SHARE)))
            if not message.get("more_body", False):
                return

    def take(self) -> bytes:
        """The bytes, which are not kept here any more."""
        body = bytes(self._buffer)
        self._buffer = bytearray()
        return body

"""A request's body as it arrives: held within the budget, and let go once it is parsed."""

from __future__ import annotations

import re
from typing import Any

from starlette.types import Receive, Scope

from server.api.middleware import header
from server.api.sizes import BODY_SHARE
from server.api.trace import ClientDisconnected
from server.errors import ErrorCode, QuireError
from server.host_budget import Holding
from weights.strict_json import JsonFault, read_object, shown

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body whose size and depth ``measure`` has found to be allowed.

    Raises:
        QuireError: it is not one; the message says where and why.
    """
    if not body.strip():
        raise _invalid("The request body is empty. Send a JSON object.")
    try:
        found = read_object(body)
    except JsonFault as fault:
        raise _invalid(f"The request body {fault}.") from None
    if _SURROGATE_ESCAPE.search(body):
        _check_surrogates(found)
    return found


def _check_surrogates(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _invalid(
                f"The string {shown(value)} holds a lone surrogate: it is not valid Unicode."
            ) from None
    elif isinstance(value, list):
        for item in value:
            _check_surrogates(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_surrogates(key)
            _check_surrogates(item)


def _invalid(message: str) -> QuireError:
    return QuireError(ErrorCode.INVALID_REQUEST, message)


class Body:
    """The bytes of one body. They are taken once, so that no name keeps them alive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    async def read(self, scope: Scope, receive: Receive, holding: Holding) -> None:
        """Reads all of it. What is announced is held before a byte of it is read.

        Raises:
            ClientDisconnected
            QuireError: it does not fit the budget, came too slowly, or is too large.
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

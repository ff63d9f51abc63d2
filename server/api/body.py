"""A request's body as it arrives: held within the budget, and let go once it is parsed."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from starlette.types import Receive, Scope

from server.api.errors import shown
from server.api.middleware import header
from server.api.sizes import BODY_SHARE
from server.api.trace import ClientDisconnected
from server.errors import ErrorCode, QuireError
from server.host_budget import Holding

# A request body as JSON, strictly: UTF-8, no NaN, no key twice, no half characters.
#
# Python's own parser is more lenient than the standard (RFC 8259), so each leniency is taken back.

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body whose size and depth ``measure`` has found to be allowed.

    Raises:
        QuireError: it is not one; the message says where and why.
    """
    if not body.strip():
        raise _invalid("The request body is empty. Send a JSON object.")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"The request body is not UTF-8 at byte {error.start}.") from None
    value = _parse(text)
    if not isinstance(value, dict):
        raise _invalid(f"The request body must be a JSON object, not {shown(value)}.")
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _invalid(
            f"The request body is not valid JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}."
        ) from None
    except RecursionError:
        raise _invalid("The request body is nested too deeply.") from None
    except ValueError:  # an integer of thousands of digits
        raise _invalid("The request body holds a number with too many digits.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _invalid(f"The key {shown(key)} appears twice in one object.")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _invalid(f"The request body is not valid JSON: {name} is not a JSON number.")


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

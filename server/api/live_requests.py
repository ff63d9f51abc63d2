"""The requests that are under way, by the ids under which a client knows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from server.api.trace import RequestTrace

Open = TypeVar("Open", bound=RequestTrace)

_PREFIXES = ("cmpl-", "chatcmpl-")  # of the id in an answer's body


class LiveRequests(Generic[Open]):
    """Not thread-safe: one event loop owns it."""

    def __init__(self) -> None:
        self._by_id: dict[str, Open] = {}

    @contextmanager
    def listed(self, request: Open) -> Iterator[None]:
        """While entered, the request can be found."""
        self._by_id[request.request_id] = request
        try:
            yield
        finally:
            del self._by_id[request.request_id]

    def find(self, name: str) -> list[Open]:
        """By the server's id, as it stands in the answer or without its prefix; else all that
        carry this label of the client's, which need not be unique."""
        own = name
        for prefix in _PREFIXES:
            own = own.removeprefix(prefix)
        if own in self._by_id:
            return [self._by_id[own]]
        return [request for request in self._by_id.values() if request.label == name]

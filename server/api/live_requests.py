"""The requests that are under way, by the ids under which a client knows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.api.trace import RequestTrace
from server.engine.request import EngineRequest

_PREFIXES = ("cmpl-", "chatcmpl-")  # of the id in an answer's body


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """One HTTP request that generates: its trace, and the engine's requests, one a prompt."""

    trace: RequestTrace
    requests: tuple[EngineRequest, ...]

    @property
    def engine_ids(self) -> tuple[str, ...]:
        return tuple(request.request_id for request in self.requests)


class LiveRequests:
    """Not thread-safe: one event loop owns it."""

    def __init__(self) -> None:
        self._by_id: dict[str, OpenRequest] = {}

    @contextmanager
    def listed(self, trace: RequestTrace, requests: tuple[EngineRequest, ...]) -> Iterator[None]:
        """While entered, the request can be found."""
        self._by_id[trace.request_id] = OpenRequest(trace, requests)
        try:
            yield
        finally:
            del self._by_id[trace.request_id]

    def find(self, name: str) -> list[OpenRequest]:
        """By the server's id, as it stands in the answer or without its prefix; else all that
        carry this label of the client's, which need not be unique."""
        own = name
        for prefix in _PREFIXES:
            own = own.removeprefix(prefix)
        if own in self._by_id:
            return [self._by_id[own]]
        return [request for request in self._by_id.values() if request.trace.label == name]

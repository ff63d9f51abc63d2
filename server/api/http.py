"""The HTTP/1.1 server: uvicorn's life of a server, over our own connections with their bounds."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from server.api.http1.accept import Acceptor
from server.api.http1.connection import Connection
from server.api.http1.places import Places
from server.api.http1.shared import Shared
from server.api.http1.turns import Turns
from server.api.state import HttpLimits
from server.metrics.stats import RequestMetrics


def serve(
    app: ASGIApp,
    limits: HttpLimits,
    metrics: RequestMetrics,
    *,
    drain_timeout_s: int | None = None,
) -> uvicorn.Server:
    """A server that is not running yet: ``await server.serve(sockets=...)`` runs it.

    Signals are the caller's: setting ``server.should_exit`` stops accepting connections, finishes
    those that are open (for at most ``drain_timeout_s``), and returns. ``metrics`` hears of answers
    that the application knows nothing of.
    """
    config = uvicorn.Config(
        app,
        http=asyncio.Protocol,  # never made: see _Server
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=drain_timeout_s,
    )
    return _Server(config, app, limits, metrics)


class _Server(uvicorn.Server):
    """uvicorn's, which starts and stops the application and waits for connections to end; but it is
    given no socket: accepting is ours, and so is what speaks on a connection."""

    def __init__(
        self, config: uvicorn.Config, app: ASGIApp, limits: HttpLimits, metrics: RequestMetrics
    ) -> None:
        super().__init__(config)
        self._app, self._limits, self._metrics = app, limits, metrics
        self._acceptors: list[Acceptor] = []

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves the process's signal handlers alone."""
        yield

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        loop = asyncio.get_running_loop()
        shared = Shared(
            app=self._app,
            limits=self._limits,
            metrics=self._metrics,
            loop=loop,
            turns=Turns(loop),
            places=Places(self._limits, time.monotonic),
            connections=self.server_state.connections,
            tasks=self.server_state.tasks,
            default_headers=lambda: self.server_state.default_headers,
            app_state=self.lifespan.state,
        )
        self._acceptors = [
            Acceptor(loop, listener, lambda: Connection(shared), shared.places.make_room)
            for listener in sockets or ()
        ]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
        await super().shutdown(sockets)

"""A client of an application in this process: no sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

from server.api.app import create_app
from server.api.state import ApiState

Story = Callable[[httpx.AsyncClient], Awaitable[Any]]
Told = TypeVar("Told")


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def with_client(state: ApiState, story: Callable[[httpx.AsyncClient], Awaitable[Told]]) -> Told:
    """What ``story`` returns, told by a client of an application with this state, not started."""

    async def run() -> Told:
        async with client_of(create_app(state)) as client:
            return await story(client)

    return asyncio.run(run())

"""A client of an application in this process: no sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from fastapi import FastAPI

from server.api.app import create_app
from server.api.state import ApiState

if TYPE_CHECKING:
    import openai

Told = TypeVar("Told")


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@asynccontextmanager
async def started(state: ApiState) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has started: it serves chats, once its template is ready."""
    app = create_app(state)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


def with_client(state: ApiState, story: Callable[[httpx.AsyncClient], Awaitable[Told]]) -> Told:
    """What ``story`` returns, told by a client of an application with this state, not started."""

    async def run() -> Told:
        async with client_of(create_app(state)) as client:
            return await story(client)

    return asyncio.run(run())


def openai_client(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    import openai

    return openai.AsyncOpenAI(
        base_url="http://test/v1", api_key="none", http_client=http, max_retries=0
    )


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """A stream's data, which must be well formed and end in [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]

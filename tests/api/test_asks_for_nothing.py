"""A value that asks for nothing is served as if it were absent; one that asks for something is
served or refused by name. Over HTTP alone, so that it outlives the validator."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.app import create_app
from server.api.state import ApiState
from server.engine.request import EngineRequest
from tests.api.api_client import client_of
from tests.api.api_fakes import FakeEngine, make_state
from tests.api.asks_for_nothing import (
    BOTH,
    CHAT,
    COMPLETIONS,
    LABELS,
    MESSAGE_KEYS,
    NOTHING,
    PROGRAMS,
    REFUSED,
    REFUSED_MESSAGES,
    REQUIRED,
    SERVED,
)

HELLO = {"role": "user", "content": "hello"}
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "hello", "max_tokens": 3, "seed": 7, "temperature": 0.5},
    CHAT: {"messages": [HELLO], "max_tokens": 3, "seed": 7, "temperature": 0.5},
}
Post = Callable[[str, Any], Awaitable[httpx.Response]]
Story = Callable[[Post, FakeEngine, ApiState], Awaitable[Any]]


def told(story: Story, *routes: str) -> Any:
    """What ``story`` returns, which posts bodies to an application: one with a template, whose
    process takes a while to start, where the chats are among the ``routes``."""
    engine = FakeEngine()
    state = make_state(engine)
    if CHAT not in routes:
        state = replace(state, chat_template=None)

    async def run() -> Any:
        app = create_app(state)
        async with app.router.lifespan_context(app), client_of(app) as client:

            async def post(route: str, body: Any) -> httpx.Response:
                return await client.post(route, json=body)

            return await story(post, engine, state)

    return asyncio.run(run())


async def served(post: Post, engine: FakeEngine, route: str, body: Any) -> Any:
    """The refusal's message; or what reached the engine and what came back, but for what differs
    between any two requests."""
    engine.seen.clear()
    response = await post(route, body)
    if response.status_code != 200:
        return response.json()["error"]["message"]
    requests = [_without_names(request) for request in engine.seen]
    answer = response.json()
    return requests, answer["choices"], answer["usage"]


def _without_names(request: EngineRequest) -> EngineRequest:
    keeps_all = replace(request.sampling, top_k=max(request.sampling.top_k, 0))
    return replace(request, request_id="", tenant="", sampling=keeps_all)


@pytest.mark.parametrize("route", BOTH)
def test_values_that_ask_for_nothing_are_as_good_as_absent(route: str) -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> dict[str, Any]:
        plain = await served(post, engine, route, BODIES[route])
        assert len(plain[0]) == 1
        wrong = {}
        for name, values in NOTHING[route].items():
            for value in values:
                got = await served(post, engine, route, {**BODIES[route], name: value})
                if got != plain:
                    wrong[f"{name} {value!r}"] = got
        together = {name: values[0] for name, values in NOTHING[route].items() if values}
        got = await served(post, engine, route, {**BODIES[route], **together})
        return wrong if got == plain else {**wrong, "together": got}

    assert told(story, route) == {}


@pytest.mark.parametrize("route", BOTH)
def test_null_is_as_good_as_absent_in_every_field(route: str) -> None:
    names = [name for name in NOTHING[route] if name != REQUIRED[route]]
    names += [name for other in BOTH for name in NOTHING[other] if name not in NOTHING[route]]

    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        async def same(chosen: list[str]) -> None:
            body = BODIES[route]
            absent = {name: value for name, value in body.items() if name not in chosen}
            absent["seed"] = 7  # without one, two requests differ
            null = {**absent, **{name: None for name in chosen if name != "seed"}}
            expected = await served(post, engine, route, absent)
            assert not isinstance(expected, str), expected
            assert await served(post, engine, route, null) == expected

        for name in names:
            await same([name])
        await same(names)
        loop = asyncio.get_running_loop()

        @settings(max_examples=30, deadline=None, database=None, derandomize=True)
        @given(st.sets(st.sampled_from(names), min_size=2))
        def any_of_them(chosen: set[str]) -> None:
            asyncio.run_coroutine_threadsafe(same(sorted(chosen)), loop).result()

        await asyncio.to_thread(any_of_them)

    told(story, route)


@pytest.mark.parametrize("route", BOTH)
def test_a_required_field_that_is_null_is_missing(route: str) -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        body = {**BODIES[route], REQUIRED[route]: None}
        absent = {name: value for name, value in body.items() if value is not None}
        for one in (body, absent):
            response = await post(route, one)
            assert response.status_code == 400
            error = response.json()["error"]
            assert (error["code"], error["param"]) == (
                "missing_required_parameter",
                REQUIRED[route],
            )

    told(story, route)


@pytest.mark.parametrize("route", BOTH)
def test_the_data_of_these_tests_holds_every_field_that_is_served(route: str) -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> str:
        response = await post(route, {**BODIES[route], "temprature": None})
        assert response.status_code == 400  # a name that nobody knows may be a misspelt wish
        return str(response.json()["error"]["message"])

    listed = re.search(r"Known: (.*)\.", told(story, route))
    assert listed is not None
    assert set(listed[1].split(", ")) <= set(NOTHING[route])
    assert set(SERVED) <= set(listed[1].split(", "))


@pytest.mark.parametrize("route", BOTH)
def test_labels_are_typed_and_bounded(route: str) -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        for name in LABELS:
            many = {str(index): "x" for index in range(17)}
            bad = [1, True, ["x"], *([{"a": "x"}] if name != "metadata" else ["x"])]
            bad += [{"a": 1}, {"a": "x" * 513}, {"k" * 65: "x"}, many]
            for value in bad if name == "metadata" else [*bad, "x" * 1025]:
                response = await post(route, {**BODIES[route], name: value})
                assert response.status_code == 400, (name, value)
                assert response.json()["error"]["param"].startswith(name)

    told(story, route)


def test_keys_of_a_message_that_ask_for_nothing_are_served() -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        def body(role: str, **keys: Any) -> dict[str, Any]:
            return {**BODIES[CHAT], "messages": [{**HELLO, "role": role, **keys}]}

        for role in ("user", "assistant", "system", "developer"):
            plain = await served(post, engine, CHAT, body(role))
            assert not isinstance(plain, str), plain
            for keys in MESSAGE_KEYS:
                assert await served(post, engine, CHAT, body(role, **keys)) == plain, keys

    told(story, CHAT)


def test_an_assistant_may_have_said_nothing() -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        def body(said: dict[str, Any]) -> dict[str, Any]:
            return {**BODIES[CHAT], "messages": [HELLO, {"role": "assistant", **said}, HELLO]}

        empty = await served(post, engine, CHAT, body({"content": ""}))
        assert not isinstance(empty, str), empty
        for said in ({"content": None}, {}, {"content": None, "tool_calls": []}):
            assert await served(post, engine, CHAT, body(said)) == empty

    told(story, CHAT)


def test_any_other_key_of_a_message_is_refused_with_its_path() -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        for message, words, param, code in REFUSED_MESSAGES:
            response = await post(CHAT, {**BODIES[CHAT], "messages": [message]})
            error = response.json().get("error", {})
            assert response.status_code == 400, message
            assert words in error["message"]
            assert (error["param"], error["code"]) == (param, code)
        assert not engine.seen

    told(story, CHAT)


def test_what_asks_for_something_is_refused_in_words_and_the_log_names_the_field() -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        for routes, changes, words, param in REFUSED:
            for route in routes:
                response = await post(route, {**BODIES[route], **changes})
                error = response.json()["error"]
                assert (response.status_code, error["code"]) == (400, "unsupported_parameter")
                assert words in error["message"]
                assert error["param"] == (param or next(iter(changes)))
                assert "an object of" not in error["message"]
                record = state.metrics.records[-1]  # type: ignore[attr-defined]
                assert record.error_param == error["param"]
        assert not engine.seen

    told(story, *BOTH)


def test_a_log_names_no_key_that_may_be_a_text() -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> list[str | None]:
        for key in ("temprature", "my secret\nprompt", "x" * 90):
            await post(COMPLETIONS, {**BODIES[COMPLETIONS], key: 1})
        return [record.error_param for record in state.metrics.records]  # type: ignore[attr-defined]

    assert told(story, COMPLETIONS) == ["temprature", None, None]


def test_sixteen_stop_strings_are_served_and_each_is_looked_for() -> None:
    stops = [chr(ord("A") + index) * 2 for index in range(16)]

    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        for stop in stops:
            engine.script = lambda request, choice, stop=stop: [*f"x{stop}y".encode()]  # type: ignore[misc]
            body = {**BODIES[COMPLETIONS], "stop": stops, "max_tokens": 9}
            (choice,) = (await post(COMPLETIONS, body)).json()["choices"]
            assert (choice["text"], choice["stop_reason"]) == ("x", stop)
        refused = await post(COMPLETIONS, {**BODIES[COMPLETIONS], "stop": [*stops, "z"]})
        assert refused.json()["error"]["message"].startswith("stop must be at most 16 strings")

    told(story, COMPLETIONS)


def test_bodies_are_served_as_programs_send_them() -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        for routes, body in PROGRAMS:
            for route in routes:
                prompt = {REQUIRED[route]: BODIES[route][REQUIRED[route]]}
                response = await post(route, {**prompt, **body})
                assert response.status_code == 200, response.text
                assert engine.seen[-1].sampling.max_tokens == 5

    told(story, *BOTH)


# -- usage in every chunk ------------------------------------------------------------------------


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("route", BOTH)
def test_continuous_usage_stats_put_the_usage_so_far_into_every_chunk(route: str) -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        for n, at_the_end in ((1, True), (1, False), (3, True), (3, None)):
            options = {"continuous_usage_stats": True, "include_usage": at_the_end}
            body = {**BODIES[route], "max_tokens": 5, "n": n}
            whole = (await post(route, body)).json()["usage"]
            response = await post(route, {**body, "stream": True, "stream_options": options})
            chunks = chunks_of(response)
            assert chunks[-1]["usage"] == whole
            assert (chunks[-1]["choices"] == []) is bool(at_the_end)
            assert told_so_far(chunks, whole["prompt_tokens"]) == 5 * n

    told(story, route)


def told_so_far(chunks: list[dict[str, Any]], prompt_tokens: int) -> int:
    """How many pieces of text there were, each of one token. At each the usage counted those of
    all choices together."""
    seen = 0
    for chunk in chunks:
        for choice in chunk["choices"]:
            seen += bool(choice.get("text") or choice.get("delta", {}).get("content"))
        usage = chunk["usage"]
        assert usage["prompt_tokens"] == prompt_tokens
        assert usage["completion_tokens"] == seen
        assert usage["total_tokens"] == prompt_tokens + seen
    return seen


@pytest.mark.parametrize("route", BOTH)
def test_a_stream_that_does_not_ask_has_no_usage(route: str) -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        for options in (None, {}, {"continuous_usage_stats": False}):
            body = {**BODIES[route], "stream": True, "stream_options": options}
            chunks = chunks_of(await post(route, body))
            assert not any("usage" in chunk for chunk in chunks)

    told(story, route)


def test_options_that_only_a_stream_can_follow_are_refused_without_one() -> None:
    async def story(post: Post, engine: FakeEngine, state: ApiState) -> None:
        for name in ("include_usage", "continuous_usage_stats"):
            body = {**BODIES[COMPLETIONS], "stream_options": {name: True}}
            error = (await post(COMPLETIONS, body)).json()["error"]
            assert error["message"] == "stream_options needs stream to be true."

    told(story, COMPLETIONS)

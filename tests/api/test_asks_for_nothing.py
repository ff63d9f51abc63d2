"""A value that asks for nothing is served as if it were absent; one that asks for something is
served or refused by name. Over HTTP alone, so that it outlives the validator."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.state import ApiState
from server.engine.request import EngineRequest
from tests.api.api_client import chunks, started
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


@asynccontextmanager
async def asking(*routes: str) -> AsyncIterator[tuple[Post, FakeEngine, ApiState]]:
    """What posts bodies to an application: one with a template, whose process takes a while to
    start, where the chats are among the ``routes``."""
    state = make_state(FakeEngine())
    if CHAT not in routes:
        state = replace(state, chat_template=None)
    async with started(state) as client:
        yield lambda route, body: client.post(route, json=body), state.engine, state


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
async def test_values_that_ask_for_nothing_are_as_good_as_absent(route: str) -> None:
    async with asking(route) as (post, engine, _):
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
        assert (wrong, got) == ({}, plain)


@pytest.mark.parametrize("route", BOTH)
async def test_null_is_as_good_as_absent_in_every_field(route: str) -> None:
    names = [name for name in NOTHING[route] if name != REQUIRED[route]]
    names += [name for other in BOTH for name in NOTHING[other] if name not in NOTHING[route]]
    async with asking(route) as (post, engine, _):

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


@pytest.mark.parametrize("route", BOTH)
async def test_a_required_field_that_is_null_is_missing(route: str) -> None:
    async with asking(route) as (post, _, _):
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


@pytest.mark.parametrize("route", BOTH)
async def test_the_data_of_these_tests_holds_every_field_that_is_served(route: str) -> None:
    async with asking(route) as (post, _, _):
        response = await post(route, {**BODIES[route], "temprature": None})
        assert response.status_code == 400  # a name that nobody knows may be a misspelt wish
    listed = re.search(r"Known: (.*)\.", response.json()["error"]["message"])
    assert listed is not None
    assert set(listed[1].split(", ")) <= set(NOTHING[route])
    assert set(SERVED) <= set(listed[1].split(", "))


@pytest.mark.parametrize("route", BOTH)
async def test_labels_are_typed_and_bounded(route: str) -> None:
    async with asking(route) as (post, _, _):
        for name in LABELS:
            many = {str(index): "x" for index in range(17)}
            bad = [1, True, ["x"], *([{"a": "x"}] if name != "metadata" else ["x"])]
            bad += [{"a": 1}, {"a": "x" * 513}, {"k" * 65: "x"}, many]
            for value in bad if name == "metadata" else [*bad, "x" * 1025]:
                response = await post(route, {**BODIES[route], name: value})
                assert response.status_code == 400, (name, value)
                assert response.json()["error"]["param"].startswith(name)


async def test_keys_of_a_message_that_ask_for_nothing_are_served() -> None:
    async with asking(CHAT) as (post, engine, _):

        def body(role: str, **keys: Any) -> dict[str, Any]:
            return {**BODIES[CHAT], "messages": [{**HELLO, "role": role, **keys}]}

        for role in ("user", "assistant", "system", "developer"):
            plain = await served(post, engine, CHAT, body(role))
            assert not isinstance(plain, str), plain
            for keys in MESSAGE_KEYS:
                assert await served(post, engine, CHAT, body(role, **keys)) == plain, keys


async def test_an_assistant_may_have_said_nothing() -> None:
    async with asking(CHAT) as (post, engine, _):

        def body(said: dict[str, Any]) -> dict[str, Any]:
            return {**BODIES[CHAT], "messages": [HELLO, {"role": "assistant", **said}, HELLO]}

        empty = await served(post, engine, CHAT, body({"content": ""}))
        assert not isinstance(empty, str), empty
        for said in ({"content": None}, {}, {"content": None, "tool_calls": []}):
            assert await served(post, engine, CHAT, body(said)) == empty


async def test_any_other_key_of_a_message_is_refused_with_its_path() -> None:
    async with asking(CHAT) as (post, engine, _):
        for message, words, param, code in REFUSED_MESSAGES:
            response = await post(CHAT, {**BODIES[CHAT], "messages": [message]})
            error = response.json().get("error", {})
            assert response.status_code == 400, message
            assert words in error["message"]
            assert (error["param"], error["code"]) == (param, code)
        assert not engine.seen


async def test_what_asks_for_something_is_refused_in_words_and_the_log_names_the_field() -> None:
    async with asking(*BOTH) as (post, engine, state):
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


async def test_a_log_names_no_key_that_may_be_a_text() -> None:
    async with asking(COMPLETIONS) as (post, _, state):
        for key in ("temprature", "my secret\nprompt", "x" * 90):
            await post(COMPLETIONS, {**BODIES[COMPLETIONS], key: 1})
    named = [record.error_param for record in state.metrics.records]  # type: ignore[attr-defined]
    assert named == ["temprature", None, None]


async def test_sixteen_stop_strings_are_served_and_each_is_looked_for() -> None:
    stops = [chr(ord("A") + index) * 2 for index in range(16)]
    async with asking(COMPLETIONS) as (post, engine, _):
        for stop in stops:
            engine.script = lambda request, choice, stop=stop: [*f"x{stop}y".encode()]  # type: ignore[misc]
            body = {**BODIES[COMPLETIONS], "stop": stops, "max_tokens": 9}
            (choice,) = (await post(COMPLETIONS, body)).json()["choices"]
            assert (choice["text"], choice["stop_reason"]) == ("x", stop)
        refused = await post(COMPLETIONS, {**BODIES[COMPLETIONS], "stop": [*stops, "z"]})
        assert refused.json()["error"]["message"].startswith("stop must be at most 16 strings")


async def test_bodies_are_served_as_programs_send_them() -> None:
    async with asking(*BOTH) as (post, engine, _):
        for routes, body in PROGRAMS:
            for route in routes:
                prompt = {REQUIRED[route]: BODIES[route][REQUIRED[route]]}
                response = await post(route, {**prompt, **body})
                assert response.status_code == 200, response.text
                assert engine.seen[-1].sampling.max_tokens == 5


# -- usage in every chunk ------------------------------------------------------------------------


@pytest.mark.parametrize("route", BOTH)
async def test_continuous_usage_stats_put_the_usage_so_far_into_every_chunk(route: str) -> None:
    async with asking(route) as (post, _, _):
        for n, at_the_end in ((1, True), (1, False), (3, True), (3, None)):
            options = {"continuous_usage_stats": True, "include_usage": at_the_end}
            body = {**BODIES[route], "max_tokens": 5, "n": n}
            whole = (await post(route, body)).json()["usage"]
            response = await post(route, {**body, "stream": True, "stream_options": options})
            told = chunks(response)
            assert told[-1]["usage"] == whole
            assert (told[-1]["choices"] == []) is bool(at_the_end)
            assert told_so_far(told, whole["prompt_tokens"]) == 5 * n


def told_so_far(told: list[dict[str, Any]], prompt_tokens: int) -> int:
    """How many pieces of text there were, each of one token. At each the usage counted those of
    all choices together."""
    seen = 0
    for chunk in told:
        for choice in chunk["choices"]:
            seen += bool(choice.get("text") or choice.get("delta", {}).get("content"))
        usage = chunk["usage"]
        assert usage["prompt_tokens"] == prompt_tokens
        assert usage["completion_tokens"] == seen
        assert usage["total_tokens"] == prompt_tokens + seen
    return seen


@pytest.mark.parametrize("route", BOTH)
async def test_a_stream_that_does_not_ask_has_no_usage(route: str) -> None:
    async with asking(route) as (post, _, _):
        for options in (None, {}, {"continuous_usage_stats": False}):
            body = {**BODIES[route], "stream": True, "stream_options": options}
            assert not any("usage" in chunk for chunk in chunks(await post(route, body)))


async def test_options_that_only_a_stream_can_follow_are_refused_without_one() -> None:
    async with asking(COMPLETIONS) as (post, _, _):
        for name in ("include_usage", "continuous_usage_stats"):
            body = {**BODIES[COMPLETIONS], "stream_options": {name: True}}
            error = (await post(COMPLETIONS, body)).json()["error"]
            assert error["message"] == "stream_options needs stream to be true."

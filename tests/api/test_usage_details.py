"""A request's own memory and times: in its answer when it asks, and at /memory while it lives."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from server.api.app import create_app
from server.api.state import ApiState
from server.api.trace import RequestTrace
from server.api.usage import timings
from server.errors import ErrorCode, QuireError
from tests.api.api_client import chunks, client_of, openai_client, with_client
from tests.api.api_fakes import FakeEngine, RecordingMetrics, make_state, saying

ROUTES = {
    "/v1/completions": {"prompt": "ab"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "ab"}]},
}
TIMES = {
    "queue_seconds",
    "prefill_seconds",
    "time_to_first_token_seconds",
    "decode_seconds",
    "total_seconds",
}


def post(state: ApiState, route: str, **changes: Any) -> httpx.Response:
    body = {"max_tokens": 4, "temperature": 0, **ROUTES[route], **changes}
    return with_client(state, lambda client: client.post(route, json=body))


@pytest.mark.parametrize("route", ROUTES)
def test_an_answer_says_what_it_held_and_how_long_it_took(route: str) -> None:
    engine = FakeEngine(queue_seconds=0.125)
    usage = post(make_state(engine), route, usage_details=True).json()["usage"]
    assert usage["memory"] == {
        "peak_blocks": 2 + 4,
        "peak_bytes": 6000,
        "byte_seconds": 5000.0,
        "block_bytes": 1000,
    }
    times = usage["timings"]
    assert set(times) == TIMES
    assert times["queue_seconds"] == 0.125
    assert 0 <= times["time_to_first_token_seconds"] <= times["total_seconds"]
    assert times["time_to_first_token_seconds"] + times["decode_seconds"] <= times["total_seconds"]
    assert usage["completion_tokens"] == 4


def test_the_times_of_a_request_follow_each_other() -> None:
    trace = RequestTrace("POST", "/v1/completions", True, arrival=100.0)
    unknown = {name for name, value in timings(trace).items() if value is None}
    assert unknown == TIMES - {"total_seconds"}
    trace.queue_s, trace.ttft_s, trace._last_token = 0.5, 2.0, {0: 103.0, 1: 107.0}
    seconds = timings(trace)
    assert seconds["queue_seconds"] == 0.5
    assert seconds["prefill_seconds"] == 1.5
    assert seconds["time_to_first_token_seconds"] == 2.0
    assert seconds["decode_seconds"] == 5.0  # the last of all choices
    trace.queue_s = 2.25  # of a later prompt than the one that answered first
    assert timings(trace)["prefill_seconds"] == 0.0


@pytest.mark.parametrize("route", ROUTES)
def test_who_does_not_ask_gets_openais_usage_and_nothing_more(route: str) -> None:
    engine = FakeEngine()
    for changes in ({}, {"usage_details": False}, {"usage_details": None}):
        usage = post(make_state(engine), route, **changes).json()["usage"]
        assert set(usage) == {
            "prompt_tokens",
            "completion_tokens",
            "total_tokens",
            "prompt_tokens_details",
        }
    assert not any(request.reports_memory for request in engine.seen)


@pytest.mark.parametrize("route", ROUTES)
def test_a_stream_ends_in_a_chunk_with_the_details(route: str) -> None:
    *told, last = chunks(post(make_state(), route, stream=True, usage_details=True))
    assert last["choices"] == []
    assert last["usage"]["memory"]["peak_blocks"] == 6
    assert set(last["usage"]["timings"]) == TIMES
    assert all(chunk["usage"] is None for chunk in told)


def test_choices_and_prompts_are_summed() -> None:
    engine = FakeEngine()
    usage = post(
        make_state(engine), "/v1/completions", prompt=["ab", "cd"], n=3, usage_details=True
    )
    memory = usage.json()["usage"]["memory"]
    assert memory["peak_blocks"] == 2 * (4 + 4)
    assert memory["byte_seconds"] == 2 * 4 * 2500
    assert len(engine.seen) == 2


def test_a_stop_string_ends_with_what_was_held_when_it_was_met() -> None:
    usage = post(
        make_state(FakeEngine(saying("abcdef"))),
        "/v1/completions",
        max_tokens=6,
        stop="c",
        usage_details=True,
    )
    assert usage.json()["usage"]["memory"]["peak_blocks"] == 2 + 3


def test_a_stream_that_fails_says_what_it_held_before_it_says_why() -> None:
    response = post(
        make_state(FakeEngine(dies_after=2)), "/v1/completions", stream=True, usage_details=True
    )
    *_, usage, error, end = response.text.split("\n\n")
    assert end == ""
    held = json.loads(usage.removeprefix("data: "))["usage"]["memory"]
    assert held["peak_blocks"] == 2 + 2
    why = json.loads(error.removeprefix("event: error\ndata: "))
    assert why["error"]["code"] == "engine_unavailable"


@pytest.mark.parametrize("value", ["yes", 1, {}, []])
@pytest.mark.parametrize("route", ROUTES)
def test_anything_but_a_boolean_is_refused_by_name(route: str, value: Any) -> None:
    response = post(make_state(), route, usage_details=value)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "usage_details"


async def test_openais_client_reads_it() -> None:
    async with client_of(create_app(make_state())) as http:
        answer = await openai_client(http).completions.create(
            model="tiny", prompt="ab", max_tokens=4, extra_body={"usage_details": True}
        )
    assert answer.usage.memory["peak_blocks"] == 6


# -- while it lives -------------------------------------------------------------------------------


def while_live(
    state: ApiState, name: str, label: str | None = None, **query: str
) -> httpx.Response:
    """What /memory answers about ``name``, where {id} is the id that the server gave."""

    async def story(client: httpx.AsyncClient) -> httpx.Response:
        headers = {} if label is None else {"x-request-id": label}
        body = {**ROUTES["/v1/completions"], "max_tokens": 200, "n": 2}
        task = asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))
        while not state.engine.open:  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)
        own = next(iter(state.engine.open)).rpartition("-")[0]  # type: ignore[attr-defined]
        query["request_id"] = name.format(id=own)
        try:
            return await client.get("/memory", params=query)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return with_client(state, story)


@pytest.mark.parametrize("name", ["{id}", "cmpl-{id}", "chatcmpl-{id}", "my.label"])
def test_a_live_request_is_found_by_the_servers_id_or_the_clients_label(name: str) -> None:
    state = make_state(FakeEngine(token_delay=0.05))
    response = while_live(state, name, label="my.label")
    assert response.status_code == 200
    (found,) = response.json()["requests"]
    assert found["client_request_id"] == "my.label"
    assert (found["choices"], found["prompt_tokens"]) == (2, 2)
    assert found["memory"] == {
        "blocks": 3,
        "bytes": 3000,
        "shared_blocks": 1,
        "share_bytes": 2500,
        "peak_blocks": 3,
        "peak_bytes": 3000,
        "byte_seconds": 7500.0,
        "block_bytes": 1000,
    }
    assert set(found["timings"]) == TIMES


@pytest.mark.parametrize("name", ["nobody", "", "{id}x"])
def test_an_unknown_request_is_a_404_that_says_why(name: str) -> None:
    response = while_live(make_state(FakeEngine(token_delay=0.05)), name)
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("not_found", "request_id")
    assert "in progress" in error["message"]


def test_a_finished_request_is_forgotten() -> None:
    state = make_state()
    response = post(state, "/v1/completions")
    name = response.json()["id"]
    again = with_client(state, lambda client: client.get("/memory", params={"request_id": name}))
    assert again.status_code == 404
    assert not state.live._by_id


def test_the_table_is_of_the_server_and_not_of_a_request() -> None:
    response = while_live(make_state(FakeEngine(token_delay=0.05)), "{id}", format="text")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "format"


def test_an_engine_that_does_not_answer_is_a_503() -> None:
    metrics = RecordingMetrics()
    engine = FakeEngine(token_delay=0.05)
    state = make_state(engine, metrics=metrics)

    async def fail(request_ids: Any) -> Any:
        raise QuireError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is in a long step.")

    engine.memory_of = fail  # type: ignore[method-assign]
    assert while_live(state, "{id}").status_code == 503

"""Bad input: refused at once, in the one shape, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from server.api.app import create_app
from server.metrics.stats import Outcome
from tests.api.api_client import client_of, with_client
from tests.api.api_fakes import FakeEngine, RecordingMetrics, make_state
from tests.api.bad_requests import BadRequest, ServerFacts, cases

REPOSITORY = Path(__file__).parents[2]
FACTS = ServerFacts("tiny", vocab_size=300, max_model_len=256, max_body_bytes=1024 * 1024)
CASES = cases(FACTS)
CANARY = {"model": "tiny", "prompt": "canary", "max_tokens": 8, "temperature": 0}
CANARY_TEXT = "".join(chr(97 + (sum(b"canary") + index * index) % 26) for index in range(8))


def check_refusal(case: BadRequest, response: httpx.Response) -> None:
    assert response.status_code == case.status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert 10 < len(body["error"]["message"]) <= 1000
    if case.code is not None:
        assert body["error"]["code"] == case.code, body
    for forbidden in ("Traceback", str(REPOSITORY), "object at 0x", "site-packages"):
        assert forbidden not in response.text


async def send(client: httpx.AsyncClient, case: BadRequest) -> httpx.Response:
    return await client.request(case.method, case.path, content=case.body, headers=case.headers)


def test_the_table_is_large_enough() -> None:
    assert len(CASES) >= 150


@pytest.fixture(scope="module")
def shared() -> tuple[FakeEngine, RecordingMetrics, FastAPI]:
    """One application for every case: to describe its routes takes longer than a case."""
    engine = FakeEngine(token_delay=0.002)
    metrics = RecordingMetrics()
    return engine, metrics, create_app(make_state(engine, metrics=metrics))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_refused_for_little_work_and_the_canary_sings(
    case: BadRequest, shared: tuple[FakeEngine, RecordingMetrics, FastAPI]
) -> None:
    engine, metrics, app = shared
    engine.seen.clear()
    metrics.records.clear()
    async with client_of(app) as client:
        canary = asyncio.create_task(client.post("/v1/completions", json=CANARY))
        await asyncio.sleep(0.002)
        started = time.process_time()
        response = await send(client, case)
        assert time.process_time() - started < 1
        check_refusal(case, response)
        sung = await canary
        assert sung.status_code == 200
        assert sung.json()["choices"][0]["text"] == CANARY_TEXT
    assert len(engine.seen) == 1  # nothing of the bad request reached the engine
    assert not engine.open
    if case.method == "POST" and case.path in ("/v1/completions", "/v1/chat/completions"):
        outcomes = [record.outcome for record in metrics.records]
        assert sorted(outcomes) == [Outcome.INVALID, Outcome.LENGTH]


def test_a_message_repeats_what_was_given_but_not_all_of_it() -> None:
    sent = json.dumps({"model": "tiny", "prompt": "a", "temperature": "x" * 10_000})
    response = with_client(make_state(), lambda http: http.post("/v1/completions", content=sent))
    message = response.json()["error"]["message"]
    assert message.startswith('temperature must be a number, not "xxxx')
    assert len(message) < 200

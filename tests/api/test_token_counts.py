"""Tokens are counted while an answer is under way, each once, and add up to what answers say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from loadtest.report.html_charts import server_rate
from loadtest.server.scrape import Reading, read_metrics
from server.api.open_request import OpenRequest, Surroundings
from server.engine.events import Event
from server.engine.request import EngineRequest, SamplingParams
from server.errors import ErrorCode, QuireError
from server.host_budget import HostBudget
from server.metrics.gauges import GaugeSources
from server.metrics.prometheus import PrometheusMetrics
from server.output.processor import OutputOptions
from tests.api.api_client import with_client
from tests.api.api_fakes import FakeEngine, RecordingMetrics, make_state, saying

BODY = {"prompt": "ab", "max_tokens": 6, "temperature": 0}


class Watched(FakeEngine):
    """Looks at the counters before each of its events."""

    def watch(self, metrics: RecordingMetrics) -> list[int]:
        self.seen_counts: list[int] = []
        self.metrics = metrics
        return self.seen_counts

    async def _events(self, request: EngineRequest) -> AsyncIterator[Event]:
        async for event in super()._events(request):
            yield event
            self.seen_counts.append(self.metrics.completion_tokens)


def posted(engine: FakeEngine, metrics: Any, **changes: Any) -> httpx.Response:
    body = {**BODY, **changes}
    state = make_state(engine, metrics=metrics)
    return with_client(state, lambda client: client.post("/v1/completions", json=body))


@pytest.mark.parametrize("stream", [False, True])
def test_the_counter_rises_with_every_token_of_an_answer(stream: bool) -> None:
    engine, metrics = Watched(), RecordingMetrics()
    counts = engine.watch(metrics)
    posted(engine, metrics, stream=stream)
    assert counts == [0, 1, 2, 3, 4, 5, 6][: len(counts)]
    assert len(counts) >= 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 6),
        ({"n": 3}, 18),
        ({"prompt": ["ab", "cd"], "n": 2}, 24),
        ({"stream": True, "n": 2}, 12),
        ({"max_tokens": 0, "echo": True}, 0),
    ],
    ids=str,
)
def test_the_counters_add_up_to_the_usage_of_answers(changes: Any, expected: int) -> None:
    metrics = RecordingMetrics()
    posted(FakeEngine(), metrics, **changes)
    (record,) = metrics.records
    assert metrics.completion_tokens == record.completion_tokens == expected
    assert metrics.prompt_tokens == record.prompt_tokens > 0


def test_what_was_generated_after_a_stop_string_is_not_counted_and_the_engine_told_so() -> None:
    metrics = RecordingMetrics()
    engine = FakeEngine(saying("one two three"), tokens_per_event=5)
    usage = posted(engine, metrics, max_tokens=50, stop="two").json()["usage"]
    assert metrics.completion_tokens == usage["completion_tokens"] == len("one two")
    assert [num_tokens for _, _, num_tokens in engine.finished] == [len("one two")]


def test_a_request_that_fails_has_its_tokens_counted_once() -> None:
    metrics = RecordingMetrics()
    assert posted(FakeEngine(dies_after=4), metrics).status_code == 503
    (record,) = metrics.records
    assert metrics.completion_tokens == record.completion_tokens == 4


def test_a_refused_request_counts_its_prompt_as_its_record_does() -> None:
    metrics = RecordingMetrics()
    full = QuireError(ErrorCode.QUEUE_FULL, "The queue is full.")
    assert posted(FakeEngine(failure=full), metrics).status_code == 429
    (record,) = metrics.records
    assert (metrics.prompt_tokens, metrics.completion_tokens) == (record.prompt_tokens, 0)


async def test_an_aborted_request_has_counted_what_it_was_given() -> None:
    metrics = RecordingMetrics()
    request = EngineRequest("r-0", (97, 98), SamplingParams(seed=0, max_tokens=6, temperature=0))
    state = make_state(FakeEngine(), metrics=metrics)
    around = Surroundings(state.engine, state.tokenizer, metrics, state.live)
    one = OpenRequest("POST", "/v1/completions", True, surroundings=around)
    with one.asking([request], OutputOptions()):
        assert state.live.find(one.request_id) == [one]
        await one.submit()
        deltas = one.deltas()
        for _ in range(3):
            await anext(deltas)
        one.disconnected = True
        one.abort()
        await deltas.aclose()
    assert not state.live.find(one.request_id)
    one.report(metrics)
    (record,) = metrics.records
    assert metrics.completion_tokens == record.completion_tokens == 3


def test_a_load_test_sees_the_servers_rate_while_a_long_answer_is_written() -> None:
    budget = HostBudget(1000).reading
    metrics = PrometheusMetrics(
        GaugeSources(dict, lambda: True, lambda: None, dict, lambda: (), lambda: 0, budget, "cpu")
    )
    readings: list[Reading] = []

    class Scraped(FakeEngine):
        async def _events(self, request: EngineRequest) -> AsyncIterator[Event]:
            async for event in super()._events(request):
                yield event
                _, reading = read_metrics(metrics.render().decode(), float(len(readings)))
                readings.append(reading)

    posted(Scraped(), metrics, max_tokens=20, stream=True)
    rates = [rate for _, rate in server_rate(readings, "generation_tokens")]
    assert len(rates) >= 19
    assert set(rates) == {1.0}, "a token a second, in every second"

"""Measurements of a server that knows when it did what: every measure near the truth."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from loadtest.report.result import RunResult
from loadtest.report.table import render
from loadtest.run import Options
from tests.loadtest.loads import get, run, scenario

SLACK_S = 0.001
SLACK_SHARE = 0.02
TRIES = 10


def near(measured: float, truth: float, late: float) -> bool:
    """``late`` is by how much the client's timers were late in the same run, so that its reading
    was too. A measure that is wrong is wrong however late."""
    return abs(measured - truth) <= max(SLACK_S, SLACK_SHARE * abs(truth)) + late


@pytest.mark.parametrize(
    ("script", "api"),
    [
        ({"first": 0.08, "gap": 0.02}, "completions"),
        ({"first": 0.02, "gap": 0.05, "jitter": 0.8}, "completions"),
        ({"first": 0.05, "gap": 0.03, "per_event": 2}, "chat"),
    ],
    ids=["even", "jittery", "two tokens an event"],
)
def test_every_measure_is_near_the_truth(fake_port: int, script: dict[str, Any], api: str) -> None:
    """A machine that is busy with something else delays both sides: the client's own timers tell
    by how much, and a run may be repeated."""
    far: list[str] = []
    for seed in range(TRIES):
        far = far_from_truth(fake_port, script, api, seed=21 + seed)
        if not far:
            return
    pytest.fail("\n".join(far))


def far_from_truth(port: int, script: dict[str, Any], api: str, seed: int) -> list[str]:
    """Truth is what the server noted as it wrote, so that a late timer of its own counts."""
    lengths = [{"prompt_tokens": 8, "output_tokens": 6}]
    one = scenario(script, requests=lengths, api=api, prompt_form="text", seed=seed)
    result = run(port, one, Options(timeout_s=20, warm_up=0.0))
    assert result.outcomes == {"ok": 20}
    assert {record.output_tokens for record in result.records} == {6}
    assert {r.events_with_text for r in result.records} == {6 // script.get("per_event", 1)}
    assert result.rates.output_tokens > 0
    assert result.miscounted == 0
    noted = sorted(get(port, "/truth").values(), key=lambda truth: truth["received"])[-20:]
    late = 2 * result.client.lag_p99
    found = []
    per_event = script.get("per_event", 1)
    for name, values in true_values(noted, later_tokens=6 - per_event).items():
        summary = result.summaries[name]
        pairs = [("mean", summary.mean, float(np.mean(values)))]
        pairs += [
            (f"p{percentile:g}", summary.percentiles[percentile].value, true_percentile)
            for percentile in (50.0, 90.0)
            for true_percentile in [float(np.percentile(values, percentile, method="inverted_cdf"))]
        ]
        found += [f"{name} {what}: {a} for {b}" for what, a, b in pairs if not near(a, b, late)]
    return found


def true_values(noted: list[dict[str, Any]], later_tokens: int) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {"ttft": [], "itl": [], "tpot": [], "e2e": []}
    for truth in noted:
        events = truth["events"]
        values["ttft"].append(events[0] - truth["received"])
        values["itl"] += list(np.diff(events))
        values["tpot"].append((events[-1] - events[0]) / later_tokens)
        values["e2e"].append(truth["ended"] - truth["received"])
    return values


def test_a_stall_is_hidden_by_a_closed_loop_and_shown_by_an_open_one(fake_port: int) -> None:
    """Coordinated omission: a second without answers is one slow answer of a closed loop, and
    twenty late ones of a schedule of 20 requests a second."""
    script = {"first": 0.01, "gap": 0.0}
    load = {"run": {"seconds": 2.0}, "requests": [{"prompt_tokens": 8, "output_tokens": 1}]}
    whole = Options(timeout_s=20, warm_up=0.0)

    def measured(arrivals: dict[str, Any]) -> RunResult:
        get(fake_port, "/stall/0")
        one = scenario(script, arrivals=arrivals, **load)
        stall = threading.Timer(0.5, get, (fake_port, "/stall/1.0"))
        stall.start()
        try:
            return run(fake_port, one, whole)
        finally:
            stall.join()

    closed = measured({"kind": "closed", "concurrency": 1})
    opened = measured({"kind": "constant", "rate": 20.0})
    assert closed.closed_loop and not opened.closed_loop
    slow_closed = sum(r.ended - r.intended > 0.3 for r in closed.records)
    slow_open = sum(r.ended - r.intended > 0.3 for r in opened.records)
    assert slow_closed == 1
    assert 10 <= slow_open <= 20
    assert closed.summaries["e2e_intended"].percentiles[95.0].value < 0.3
    assert opened.summaries["e2e_intended"].percentiles[95.0].value > 0.8


def test_a_client_that_is_late_shows_in_the_intended_times_alone(fake_port: int) -> None:
    one = scenario({"first": 0.01}, requests=[{"prompt_tokens": 8, "output_tokens": 1}])
    result = run(fake_port, one)
    for record in result.records:
        assert record.sent >= record.intended
        assert record.first_token is not None
    delay = result.summaries["client_delay"].mean
    intended, sent = (result.summaries[name].mean for name in ("ttft_intended", "ttft"))
    assert intended - sent == pytest.approx(delay, abs=1e-9)


@pytest.mark.parametrize(
    ("script", "outcome", "detail"),
    [
        ({"status": 429}, "http_429", "as scripted"),
        ({"status": 500}, "http_500", "as scripted"),
        ({"failure": "truncated"}, "truncated", "without data: [DONE]"),
        ({"failure": "closed"}, "truncated", "closed by the server"),
        ({"failure": "no_http"}, "malformed", "not HTTP/1.1"),
        ({"failure": "no_events"}, "malformed", "neither server-sent events nor JSON"),
        ({"failure": "no_json"}, "malformed", "not a JSON object"),
        ({"failure": "error_event"}, "error", "as scripted"),
        ({"failure": "error_and_close"}, "error", "as scripted"),
        ({"failure": "odd_choices"}, "malformed", "choices are not a list of objects"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_each_failure_has_its_name(
    fake_port: int, script: dict[str, Any], outcome: str, detail: str
) -> None:
    result = run(fake_port, scenario(script, run={"requests": 3}))
    assert result.outcomes == {outcome: 3}
    assert all(detail in record.detail for record in result.records), result.records
    assert not result.summaries


def test_an_answer_of_no_stated_length_ends_with_its_connection(fake_port: int) -> None:
    result = run(fake_port, scenario({"failure": "no_length"}, run={"requests": 2}, stream=False))
    assert result.outcomes == {"ok": 2} and result.finish_reasons == {"stop": 2}


def test_a_server_that_refuses_the_scenario_is_not_asked_for_long(fake_port: int) -> None:
    """As one that knows no response_format: the first answers say why, and the run ends."""
    one = scenario(
        {"status": 400}, run={"seconds": 30.0}, arrivals={"kind": "closed", "concurrency": 4}
    )
    result = run(fake_port, one)
    assert len(result.records) < 200 and result.seconds < 30
    assert "refuses this scenario's requests: HTTP 400: as scripted" in result.complaints[0]
    assert "first http_400: as scripted" in render(result)
    assert not result.is_good


def test_a_server_that_is_full_for_a_moment_is_asked_on(fake_port: int) -> None:
    result = run(fake_port, scenario({"status": 429}))
    assert result.outcomes == {"http_429": 20} and result.refused is None
    assert not result.is_good and "no request got a complete answer" in result.complaints


def test_a_conversation_goes_on_by_its_answers(fake_port: int) -> None:
    kind = {"prompt_tokens": 4, "output_tokens": 3, "turns": 3}
    one = scenario({"gap": 0.005}, api="chat", requests=[kind], run={"requests": 4})
    result = run(fake_port, one)
    assert result.outcomes == {"ok": 12}
    turns = sorted((r for r in result.records if r.index == 0), key=lambda r: r.sent)
    assert len(turns) == 3
    assert all(later.sent >= earlier.ended for earlier, later in pairwise(turns))
    endless = scenario({"gap": 0.01}, api="chat", requests=[{**kind, "turns": 900}])
    short = run(fake_port, replace(endless, seconds=0.3, requests=1))
    assert 1 < len(short.records) < 900


def test_a_closed_loop_ends_with_whichever_bound_comes_first(fake_port: int) -> None:
    loop = {"kind": "closed", "concurrency": 2}
    few = run(fake_port, scenario(arrivals=loop, run={"requests": 6, "seconds": 30.0}))
    assert few.outcomes == {"ok": 6} and few.seconds < 30
    short = run(fake_port, scenario({"gap": 0.01}, arrivals=loop, run={"seconds": 0.3}))
    assert short.seconds >= 0.3 and short.outcomes["ok"] >= 2


def test_an_answer_that_does_not_come_in_time(fake_port: int) -> None:
    one = scenario({"first": 1.5}, run={"requests": 2})
    result = run(fake_port, one, Options(timeout_s=0.3))
    assert result.outcomes == {"timeout": 2}


def test_a_gauge_that_stays_up_is_told(fake_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.server.scrape.SETTLE_S", 1.0)
    leak = threading.Timer(0.3, get, (fake_port, "/leak/2"))
    leak.start()
    result = run(fake_port, scenario({"first": 0.05}))
    leak.join()
    get(fake_port, "/leak/0")
    assert result.server.server == "Quire"
    assert result.server.not_back == {"requests_running": (0.0, 2.0)}
    assert not result.is_good
    assert any("did not return" in line for line in result.complaints)


def test_the_server_s_series_is_on_the_run_s_time_axis(fake_port: int) -> None:
    one = scenario({"first": 1.5}, arrivals={"kind": "closed", "concurrency": 3})
    result = run(fake_port, replace(one, requests=3))
    assert max(r.gauges["requests_running"] for r in result.server.readings) == 3.0
    assert result.server.readings[-1].memory == {"weights": 1024.0}
    assert not result.server.not_back


class TestChaos:
    def test_what_misbehaves_is_kept_out_of_the_figures(self, fake_port: int) -> None:
        shares = {"cancel": 0.3, "disconnect": 0.2, "malformed": 0.2}
        one = scenario({"gap": 0.01}, chaos=shares, run={"requests": 60})
        result = run(fake_port, one)
        kinds = {record.kind for record in result.records}
        assert kinds == {"normal", "cancel", "disconnect", "malformed"}
        assert set(result.outcomes) == {"ok"}  # of those that behave
        cancelled = [r for r in result.records if r.kind in ("cancel", "disconnect")]
        assert {record.outcome for record in cancelled} <= {"cancelled", "ok"}
        assert any(record.outcome == "cancelled" for record in cancelled)
        assert all(r.events_with_text == 1 for r in cancelled if r.kind == "disconnect")
        assert result.canary is not None and result.canary.asked >= 2
        assert not result.canary.changed and not result.canary.failed
        assert "answers the same to the letter" in render(result)
        (line,) = [one for one in render(result).splitlines() if one.startswith("malformed ")]
        assert f"{result.chaos['malformed']['http_400']} http_400" in line
        hurt = next(record for record in result.records if record.kind == "malformed")
        worse = replace(result, records=[replace(hurt, outcome="closed"), *result.records])
        assert "1 malformed requests were not refused but ended: closed" in worse.complaints

    def test_a_slow_reader_is_slow_and_alone(self, fake_port: int) -> None:
        """Half of the requests read a kilobyte, then wait a quarter of a second."""
        one = scenario(
            {"padding": 600}, chaos={"slow_reader": 0.5}, run={"requests": 12}, stream=True
        )
        result = run(fake_port, one)
        took: dict[str, list[float]] = {"slow_reader": [], "normal": []}
        for record in result.records:
            assert record.ok, record
            took[record.kind].append(record.ended - record.sent)
        assert min(took["slow_reader"]) > max(0.5, np.median(took["normal"]))
        assert result.canary is not None and not result.canary.changed

    def test_a_canary_that_changes_its_song_is_a_failed_run(self, fake_port: int) -> None:
        result = run(fake_port, scenario({}, chaos={"cancel": 0.1}, run={"requests": 5}))
        assert result.is_good and result.canary is not None
        result.canary.changed.append((1.0, "another answer"))
        assert not result.is_good
        assert any("canary" in line for line in result.complaints)

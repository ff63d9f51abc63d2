"""The log: one line a request, as text or as JSON, and never a word of the prompt."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

from server.logs import JsonFormatter, TextFormatter
from server.metrics.stats import Outcome, RequestLog, RequestRecord

RECORD = RequestRecord(
    request_id="r1",
    route="/v1/completions",
    outcome=Outcome.LENGTH,
    status=200,
    stream=True,
    prompt_tokens=12,
    completion_tokens=3,
    ttft_s=0.0123,
    e2e_s=0.5,
    finish_reasons=("length",),
    client_request_id="mine",
)


def line(
    caplog: pytest.LogCaptureFixture, formatter: logging.Formatter, sent: RequestRecord = RECORD
) -> str:
    with caplog.at_level(logging.INFO, "quire.request"):
        RequestLog().observe_finish(sent)
    [record] = caplog.records
    return formatter.format(record)


def test_a_request_is_one_json_object(caplog: pytest.LogCaptureFixture) -> None:
    found = json.loads(line(caplog, JsonFormatter()))
    assert found["level"] == "info"
    assert found["message"] == "/v1/completions 200 length"
    assert (found["request_id"], found["client_request_id"]) == ("r1", "mine")
    assert (found["prompt_tokens"], found["completion_tokens"]) == (12, 3)
    assert (found["ttft_ms"], found["e2e_ms"]) == (12.3, 500.0)
    assert "queue_ms" not in found  # what is not known is not written
    assert found["time"].endswith("Z")


def test_a_request_is_one_line_of_text(caplog: pytest.LogCaptureFixture) -> None:
    found = line(caplog, TextFormatter())
    assert "\n" not in found
    assert "INFO quire.request /v1/completions 200 length request_id=r1" in found
    assert "ttft_ms=12.3" in found


def test_a_refused_request_names_its_field(caplog: pytest.LogCaptureFixture) -> None:
    refused = replace(RECORD, error_code="unsupported_parameter", error_param="tools")
    found = line(caplog, TextFormatter(), refused)
    assert "error_code=unsupported_parameter error_param=tools" in found


def test_an_exception_is_part_of_its_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        import sys

        record = logging.LogRecord("quire", 40, "f", 1, "failed", (), sys.exc_info())
    found = json.loads(JsonFormatter().format(record))
    assert found["level"] == "error"
    assert "ValueError: broken" in found["exception"]

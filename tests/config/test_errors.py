"""Every reason that the engine has meets one HTTP status, here written a second time."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.request import EngineError
from server.errors import client_error_code

STATUS_AND_CODE = {
    EngineError.INVALID_REQUEST: (400, "invalid_request"),
    EngineError.INVALID_VALUE: (400, "invalid_value"),
    EngineError.UNSUPPORTED_TASK: (400, "invalid_request"),
    EngineError.CONTEXT_LENGTH: (400, "context_length_exceeded"),
    EngineError.CAPACITY: (400, "request_exceeds_capacity"),
    EngineError.QUEUE_FULL: (429, "queue_full"),
    EngineError.NON_FINITE: (500, "non_finite_logits"),
    EngineError.INTERNAL: (500, "internal_error"),
    EngineError.QUEUE_TIMEOUT: (503, "queue_timeout"),
    EngineError.SHUTTING_DOWN: (503, "shutting_down"),
    EngineError.OUT_OF_MEMORY: (503, "out_of_memory"),
}


@pytest.mark.parametrize("reason", list(EngineError))
def test_every_engine_error_has_its_status_and_code(reason: EngineError) -> None:
    kind = client_error_code(reason).value
    assert (kind.status, kind.code) == STATUS_AND_CODE[reason]


def test_what_is_not_an_engine_error_is_not_passed_off_as_an_internal_one() -> None:
    with pytest.raises(AssertionError, match="CAPACTY"):
        client_error_code("CAPACTY")  # type: ignore[arg-type]


def test_the_engine_gives_each_of_its_reasons() -> None:
    engine = Path(__file__).parents[2] / "server" / "engine"
    source = "".join(path.read_text() for path in engine.glob("*.py") if path.name != "request.py")
    assert [one.name for one in EngineError if f"EngineError.{one.name}" not in source] == []

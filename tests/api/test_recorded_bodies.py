"""What every recorded body is answered is what it was answered when it was recorded."""

from __future__ import annotations

import asyncio

from recorded_bodies import FILE, Recorded, answers

RECORDED = [Recorded.of_line(line) for line in FILE.read_text().splitlines()]


def test_the_record_is_large_and_of_every_kind() -> None:
    assert len(RECORDED) >= 3000
    assert len({recorded.path for recorded in RECORDED}) == 2
    assert sum(recorded.status == 200 for recorded in RECORDED) >= 500
    codes = {recorded.code for recorded in RECORDED}
    assert codes >= {
        "invalid_type",
        "invalid_value",
        "invalid_request",
        "unknown_parameter",
        "unsupported_parameter",
        "missing_required_parameter",
        "model_not_found",
        "context_length_exceeded",
    }


def test_status_code_and_field_are_those_of_the_record() -> None:
    found = asyncio.run(answers([(one.path, one.body) for one in RECORDED]))
    differ = [
        f"{response.text} was {recorded.line()}"
        for recorded, (now, response) in zip(RECORDED, found, strict=True)
        if now != recorded
    ]
    assert not differ, f"{len(differ)} differ:\n" + "\n".join(differ[:20])

"""Who watches a load sees a bar; a log gets lines, and only where it takes long."""

from __future__ import annotations

import io

import pytest

from server.engine_build import loading_display

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_the_log_nothing() -> None:
    stream, lines = Terminal(), list[str]()
    loading_display("text", lines.append, stream)(4 * MIB, 4 * MIB)
    assert "100 % of 4.0 MiB" in stream.getvalue()
    assert lines == []


@pytest.mark.parametrize(("log_format", "stream"), [("json", Terminal()), ("text", io.StringIO())])
def test_a_log_gets_a_line_every_two_seconds(
    log_format: str, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, lines = [100.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    show = loading_display(log_format, lines.append, stream)
    for step in range(1, 5):
        now[0] += 1.0
        show(step * MIB, 4 * MIB)
    assert lines == [
        "loading: 50 % of 4.0 MiB at 1.0 MiB/s, 2.0 s left",
        "loading: 100 % of 4.0 MiB in 4.0 s, 1.0 MiB/s",
    ]
    assert stream.getvalue() == ""

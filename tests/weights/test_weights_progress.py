"""The progress display on a terminal and elsewhere."""

from __future__ import annotations

import io

from weights.progress import ProgressBar

GIB = 1 << 30


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def show(stream: io.StringIO, *, seconds: float, steps: int) -> list[str]:
    """Lines (or redraws) of a load of 4 GiB in ``steps`` equal steps."""
    clock = Clock()
    bar = ProgressBar(stream, clock=clock)
    for step in range(1, steps + 1):
        clock.now += seconds / steps
        bar(4 * GIB * step // steps, 4 * GIB)
    return [line for line in stream.getvalue().replace("\r", "\n").split("\n") if line]


def test_a_terminal_sees_a_bar_that_is_redrawn() -> None:
    stream = Terminal()
    lines = show(stream, seconds=2.0, steps=4)
    assert len(lines) == 4
    assert lines[1] == f"loading [{'#' * 15}{'-' * 15}]  50 % of 4.00 GiB at 2.00 GiB/s"
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")


def test_a_file_sees_plain_lines_seldom() -> None:
    lines = show(io.StringIO(), seconds=20.0, steps=1000)
    assert len(lines) == 4
    assert lines[-1] == "loading 100 % of 4.00 GiB at 204.8 MiB/s"
    assert not any("\r" in line or "[" in line for line in lines)


def test_a_fast_load_ends_with_one_line() -> None:
    assert show(io.StringIO(), seconds=0.5, steps=100) == [
        "loading 100 % of 4.00 GiB at 8.00 GiB/s"
    ]


def test_a_fast_clock_does_not_flood_a_terminal() -> None:
    assert len(show(Terminal(), seconds=1.0, steps=10_000)) <= 11

"""The progress display on a terminal and elsewhere."""

from __future__ import annotations

import io
from itertools import pairwise

from weights.loading.progress import ProgressBar

MIB = 1 << 20
GIB = 1 << 30


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Load:
    """A load of 4 GiB whose time is told. ``lines`` are what was shown, a redraw each."""

    def __init__(self, stream: io.StringIO) -> None:
        self.stream = stream
        self.now, self.done = 100.0, 0
        self._bar = ProgressBar(stream, clock=lambda: self.now)

    def go(self, num_bytes: int, seconds: float, steps: int) -> None:
        for step in range(steps):
            self.now += seconds / steps
            self.done += num_bytes * (step + 1) // steps - num_bytes * step // steps
            self._bar(self.done, 4 * GIB)

    @property
    def lines(self) -> list[str]:
        return [line for line in self.stream.getvalue().replace("\r", "\n").split("\n") if line]


def show(stream: io.StringIO, *, seconds: float, steps: int) -> list[str]:
    """Lines (or redraws) of a load in ``steps`` equal steps."""
    load = Load(stream)
    load.go(4 * GIB, seconds, steps)
    return load.lines


def test_a_terminal_sees_a_bar_that_is_redrawn() -> None:
    stream = Terminal()
    lines = show(stream, seconds=2.0, steps=4)
    assert len(lines) == 4
    bar = "#" * 15 + "-" * 15
    assert lines[1] == f"loading [{bar}]  50 % of 4.00 GiB at 2.00 GiB/s, 1.0 s left"
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")


def test_a_file_sees_plain_lines_seldom() -> None:
    lines = show(io.StringIO(), seconds=20.0, steps=1000)
    assert len(lines) == 4
    assert lines[-1] == "loading 100 % of 4.00 GiB in 20 s, 204.8 MiB/s"
    assert not any("\r" in line or "[" in line for line in lines)


def test_a_fast_load_ends_with_one_line() -> None:
    assert show(io.StringIO(), seconds=0.5, steps=100) == [
        "loading 100 % of 4.00 GiB in 0.5 s, 8.00 GiB/s"
    ]


def test_a_fast_clock_does_not_flood_a_terminal() -> None:
    assert len(show(Terminal(), seconds=1.0, steps=10_000)) <= 11


def test_the_rate_is_of_the_last_seconds_and_so_is_the_time_that_is_left() -> None:
    """Half comes out of the page cache in a second, the rest from a disk."""
    load = Load(io.StringIO())
    load.go(2 * GIB, seconds=1.0, steps=8)
    load.go(1024 * MIB, seconds=16.0, steps=128)
    # since the start it would be 194 MiB/s, and 5.9 s left
    assert load.lines[-1] == "loading  71 % of 4.00 GiB at 64.0 MiB/s, 18 s left"


def test_a_pause_counts_in_the_rate() -> None:
    load = Load(io.StringIO())
    load.go(2 * GIB, seconds=1.0, steps=8)
    load.go(1024 * MIB, seconds=64.0, steps=1)
    assert load.lines[-1] == "loading  75 % of 4.00 GiB at 16.0 MiB/s, 64 s left"


def test_a_shorter_text_leaves_nothing_of_a_longer_one() -> None:
    stream = Terminal()
    show(stream, seconds=9.0, steps=40)
    drawn = stream.getvalue().rstrip("\n").split("\r")[1:]
    assert len(drawn) > 2
    assert all(len(after) >= len(before.rstrip()) for before, after in pairwise(drawn))

"""Prints what the state machines visited."""

from __future__ import annotations

import pytest

from tests.invariants.engine_oracle import Visits

VISITS: pytest.StashKey[list[tuple[str, Visits]]] = pytest.StashKey()


@pytest.fixture
def report_visits(request: pytest.FixtureRequest) -> list[tuple[str, Visits]]:
    """Append (title, visits) here to have it printed after the tests."""
    return request.config.stash.setdefault(VISITS, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for title, visits in config.stash.get(VISITS, []):
        terminalreporter.section(title)
        for name, counter in (
            ("rules", visits.rules),
            ("sequence states", visits.states),
            ("events", visits.events),
        ):
            counts = ", ".join(f"{key} {count}" for key, count in sorted(counter.items()))
            terminalreporter.write_line(f"{name} ({counter.total()}): {counts}")

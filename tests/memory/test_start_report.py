"""Planned against measured at the start: every kind and component has its error."""

from __future__ import annotations

from server.memory.accounting.reading import unflatten
from server.memory.report.startup import error, start_report

MIB = 2**20


def told(**changes: int) -> list[str]:
    reading = {
        "weights": 40 * MIB,
        "kv_cache": 8 * MIB,
        "activations": 0,
        "activations.peak": 3 * MIB,
        "unaccounted": -2 * MIB,
        "resident": 80 * MIB,
        "total": 200 * MIB,
        "free": 100 * MIB,
    }
    planned = {"weights": 39 * MIB, "kv_cache": 8 * MIB, "activations": 4 * MIB}
    parts = {"embedding": 30 * MIB, "query": 9 * MIB, "norm": 0}
    measured = {"embedding": 30 * MIB, "query": 10 * MIB}
    return start_report("cpu", planned, parts, measured, unflatten(reading | changes))


def line(lines: list[str], name: str) -> list[str]:
    (found,) = (one for one in lines if one.startswith(name))
    return found.removeprefix(name).split()


def test_every_kind_has_plan_measure_and_error() -> None:
    lines = told()
    assert line(lines, "weights") == ["39.00", "MiB", "40.00", "MiB", "+2.6", "%"]
    assert line(lines, "kv_cache") == ["8.00", "MiB", "8.00", "MiB", "+0.0", "%"]
    assert line(lines, "activations") == ["4.00", "MiB", "3.00", "MiB", "-25.0", "%", "(peak)"]
    assert line(lines, "unaccounted") == ["-2.00", "MiB"]
    assert line(lines, "free of 200.00 MiB") == ["100.00", "MiB"]
    assert not any(one.startswith("graphs") for one in lines)


def test_what_is_beyond_the_limit_is_said_in_words() -> None:
    last = told(free=-30 * MIB)[-1]
    assert last.startswith("30.00 MiB more than the limit of 200.00 MiB is resident: ")
    assert "-30" not in last


def test_every_component_has_its_error_and_one_that_is_missing_shows() -> None:
    parts = told()[2]
    assert parts.strip() == "embedding 30.00 MiB +0.0 %, query 10.00 MiB +11.1 %, norm 0 B"


def test_an_estimate_is_called_one() -> None:
    lines = told(**{"estimated.runtime": 1, "runtime": 5 * MIB})
    assert line(lines, "runtime") == ["5.00", "MiB", "(estimated)"]


def test_many_components_take_few_short_lines_and_no_figure_is_torn() -> None:
    many = {f"component_{index}": (index + 1) * MIB for index in range(12)}
    lines = start_report("cpu", {"weights": 1}, many, many, unflatten({"weights": 1}))
    parts = [one for one in lines if one.startswith("  component")]
    assert 2 <= len(parts) <= 6
    assert max(len(one) for one in parts) <= 96
    assert all(one.rstrip(",").endswith("+0.0 %") for one in parts)


def test_what_was_not_planned_or_planned_as_nothing_has_no_share() -> None:
    assert error(None, 5) == ""
    assert error(0, 0) == ""
    assert error(0, MIB) == "+1.00 MiB"
    assert error(200, 199) == "-0.5 %"

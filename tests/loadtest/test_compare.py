"""Comparisons: equal servers seldom differ, a different one is seen."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.commands import compare as command
from loadtest.report.compare import Failures, compare
from loadtest.report.result import FORMAT


def result(seed: int, slower: float = 1.0, failing: int = 0) -> dict[str, Any]:
    """A run of 60 requests with 8 tokens each, log-normal times; the first so many fail."""
    draw, requests = np.random.default_rng(seed), []
    for index in range(60):
        sent = 0.5 * index
        gaps = draw.lognormal(-3.5, 0.3, 8) * slower * draw.lognormal(0.0, 0.2)
        times = tuple(sent + np.cumsum(gaps))
        requests.append(
            {
                "index": index,
                "intended": sent,
                "sent": sent,
                "ended": float(times[-1]) + 0.001,
                "status": 200,
                "outcome": "http_503" if index < failing else "ok",
                "token_times": () if index < failing else times,
                "completion_tokens": 8,
            }
        )
    return {"steady": {"start": 0.0, "end": 30.0}, "requests": requests}


def test_two_runs_of_one_server_seldom_differ_in_anything() -> None:
    differing = 0
    for seed in range(6):
        found = compare([result(2 * seed)], [result(2 * seed + 1)])
        differing += any(one.verdict != "not different" for one in found)
    assert differing <= 1


def test_a_slower_server_is_seen_and_by_how_much() -> None:
    found = {one.name: one for one in compare([result(1)], [result(2, slower=1.5)])}
    assert found["TTFT p50"].verdict == found["ITL p50"].verdict == "slower"
    assert found["ITL p50"].ratio.low < 1.5 < found["ITL p50"].ratio.high
    back = {one.name: one for one in compare([result(2, slower=1.5)], [result(1)])}
    assert back["ITL p50"].verdict == "faster"
    assert "client delay p50" not in found


def test_several_runs_of_a_side_are_joined() -> None:
    alone = compare([result(1)], [result(2)])[0].ratio
    joined = compare([result(1), result(3)], [result(2), result(4)])[0].ratio
    assert joined.high - joined.low < alone.high - alone.low


def said(
    tmp_path: Path, a: dict[str, Any], b: dict[str, Any], capsys: Any
) -> tuple[int, list[str]]:
    """The exit code and the lines of the command."""
    for name, side in (("a", a), ("b", b)):
        whole = {
            **side,
            "format": FORMAT,
            "complaints": [],
            "scenario": {"arrivals": "closed"},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(whole))
    paths = {name: str(tmp_path / f"{name}.json") for name in "ab"}
    code = command(argparse.Namespace(**paths))
    return code, capsys.readouterr().out.splitlines()


def test_a_server_that_fails_most_requests_is_not_called_faster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is three times as quick with the sixth of them that it answers."""
    code, lines = said(tmp_path, result(1), result(2, slower=0.3, failing=50), capsys)
    assert code == 1
    assert lines[1].split()[:6] == ["failed", "0", "of", "60", "50", "of"]
    assert lines[1].endswith("fails more") and "+83.3%" in lines[1]
    verdicts = [line.split()[-1] for line in lines[2:] if "p50" in line or "p95" in line]
    assert len(verdicts) >= 6 and set(verdicts) == {"-"}
    assert "nothing else is judged" in lines[-1]
    code, lines = said(tmp_path, result(2, slower=0.3, failing=50), result(1), capsys)
    assert code == 0 and lines[1].endswith("fails less") and "faster" not in "".join(lines)


def test_a_side_without_any_whole_answer_is_told_by_its_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = said(tmp_path, result(1), result(2, failing=60), capsys)
    assert code == 1 and "60 of 60" in lines[1]


def test_as_many_failures_on_both_sides_leave_the_rest_to_be_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = result(2, slower=1.5, failing=3)
    code, lines = said(tmp_path, result(1, failing=2), slow, capsys)
    assert lines[1].endswith("not different") and code == 1
    assert any(line.startswith("ITL p50") and line.endswith("slower") for line in lines)


def test_failures_differ_where_their_interval_says_so() -> None:
    # Newcombe 1998, table II: 56 of 70 against 48 of 80.
    found = Failures((48, 56), (80, 70)).difference
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert Failures((0, 1), (10, 10)).comparable
    assert not Failures((0, 9), (10, 10)).comparable
    small = Failures((0, 60), (10_000, 10_000))
    assert small.verdict == "fails more" and small.comparable

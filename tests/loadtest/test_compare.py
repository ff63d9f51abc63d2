"""Comparisons: equal servers seldom differ, a different one is seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from loadtest.compare import compare


def result(seed: int, slower: float = 1.0) -> dict[str, Any]:
    """A run of 60 requests with 8 tokens each, log-normal times."""
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
                "outcome": "ok",
                "token_times": times,
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

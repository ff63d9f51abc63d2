"""Percentiles and their intervals, steady parts, objectives: the arithmetic of the figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadtest.client.process import ClientLoad
from loadtest.report.result import RunResult
from loadtest.server.scrape import ServerSeries
from loadtest.stats.measures import MEASURES, percentile_intervals, summarise
from loadtest.stats.objectives import goodput, misses, wilson
from loadtest.stats.records import RequestRecord
from loadtest.stats.warm_up_cut import BATCH, LEAST_BATCHES, Steady, find_steady, ran

MEASURE = {measure.name: measure for measure in MEASURES}


def record(index: int = 0, *, sent: float = 0.0, **changes: object) -> RequestRecord:
    values = {
        "intended": sent,
        "ended": sent + 2.0,
        "status": 200,
        "outcome": "ok",
        "token_times": (sent + 1.0, sent + 1.2, sent + 1.5),
        "completion_tokens": 5,
    }
    return RequestRecord(index=index, sent=sent, **{**values, **changes})  # type: ignore[arg-type]


def test_each_measure_is_what_its_definition_says() -> None:
    one = record(sent=10.0, intended=9.5)
    values = {name: list(measure.values(one)) for name, measure in MEASURE.items()}
    assert values["ttft"] == pytest.approx([1.0])
    assert values["ttft_intended"] == pytest.approx([1.5])
    assert values["itl"] == pytest.approx([0.2, 0.3])
    assert values["tpot"] == pytest.approx([0.5 / (5 * 2 / 3)])  # five tokens in three events
    assert values["e2e"] == pytest.approx([2.0])
    assert values["e2e_intended"] == pytest.approx([2.5])
    assert values["client_delay"] == pytest.approx([0.5])


@pytest.mark.parametrize("per_event", [1, 2, 5])
@pytest.mark.parametrize("events", [2, 3, 20])
def test_a_token_takes_as_long_whatever_an_event_holds(events: int, per_event: int) -> None:
    """A token every 100 ms, sent so many at a time."""
    times = tuple(1.0 + 0.1 * per_event * number for number in range(events))
    one = record(token_times=times, completion_tokens=events * per_event)
    assert MEASURE["tpot"].values(one) == pytest.approx([0.1])


def test_a_first_event_that_is_counted_by_its_server_counts_as_it_says() -> None:
    """A first token alone, then four at a time."""
    times = (1.0, 1.4, 1.8)
    counted = record(token_times=times, completion_tokens=9, first_event_tokens=1)
    assert MEASURE["tpot"].values(counted) == pytest.approx([0.1])
    all_at_once = record(token_times=times, completion_tokens=9, first_event_tokens=9)
    assert MEASURE["tpot"].values(all_at_once) == ()


def test_requests_without_tokens_have_no_times_of_tokens() -> None:
    one = record(token_times=(), completion_tokens=0)
    assert not any(MEASURE[name].values(one) for name in ("ttft", "itl", "tpot"))


def test_failed_requests_count_in_no_latency() -> None:
    good, bad = record(0), record(1, outcome="truncated", token_times=(50.0,))
    summary = summarise(MEASURE["ttft"], [good, bad])
    assert summary is not None and summary.count == 1 and summary.most == 1.0
    assert summarise(MEASURE["ttft"], [bad]) is None


def test_a_percentile_is_a_value_that_so_many_do_not_exceed() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    found = percentile_intervals(values, np.arange(100), (1.0, 50.0, 95.0, 99.0, 100.0), seed=0)
    assert [one.value for one in found] == [1.0, 50.0, 95.0, 99.0, 100.0]
    assert all(one.low <= one.value <= one.high for one in found)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """200 runs of 120 requests with 5 gaps each, whose mean differs from request to request."""
    draw = np.random.default_rng(7)

    def gaps(requests: int) -> np.ndarray:
        means = draw.lognormal(0.0, 0.6, requests)
        return (means[:, None] * draw.lognormal(0.0, 0.3, (requests, 5))).ravel()

    percentiles = (50.0, 90.0)
    truths = np.percentile(gaps(400_000), percentiles)
    owners = np.repeat(np.arange(120), 5)
    held, held_alone = np.zeros(2), np.zeros(2)
    for seed in range(200):
        values = gaps(120)
        found = percentile_intervals(values, owners, percentiles, seed=seed)
        held += [one.low <= truth <= one.high for one, truth in zip(found, truths, strict=True)]
        # As if every gap had its own luck: too narrow, which is why requests are drawn.
        alone = percentile_intervals(values, np.arange(600), percentiles, seed=seed)
        held_alone += [one.low <= true <= one.high for one, true in zip(alone, truths, strict=True)]
    assert all((held >= 182) & (held <= 198))  # 95 % of 200, 3 deviations to either side
    assert all(held_alone < 178)


def test_objectives_count_every_value_and_every_failure() -> None:
    bounds = {"ttft": 1.1, "itl": 0.25}
    assert misses(record(), bounds) == ["itl"]
    assert misses(record(), {"ttft": 1.1}) == []
    assert misses(record(outcome="http_503"), bounds) == ["failed"]
    found = goodput([record(), record(token_times=(0.5,))], bounds, 10.0)
    assert (found.rate, found.share.value, found.missed["itl"]) == (0.1, 0.5, 1)
    assert not found.holds


def test_wilson_knows_how_little_few_requests_say() -> None:
    # Values of the formula, computed by hand for 8 of 10.
    found = wilson(8, 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 0).high == 1.0
    assert wilson(50, 50).low == pytest.approx(0.9287, abs=1e-4)


def series(latencies: list[float]) -> list[RequestRecord]:
    return [
        record(number, sent=float(number), ended=number + latency)
        for number, latency in enumerate(latencies)
    ]


def test_a_slow_beginning_is_cut() -> None:
    draw = np.random.default_rng(1)
    noise = draw.normal(1.0, 0.1, 300)
    noise[:40] += np.linspace(3.0, 0.5, 40)
    found = find_steady(series(list(noise)), 300.0)
    assert found.settled and 30 <= found.start <= 60, found


def test_a_steady_run_loses_little() -> None:
    noise = np.random.default_rng(2).normal(1.0, 0.1, 300)
    found = find_steady(series(list(noise)), 300.0)
    assert found.settled and found.start <= 90


def test_a_run_that_only_gets_slower_never_settles() -> None:
    found = find_steady(series(list(np.linspace(1.0, 9.0, 300))), 300.0)
    assert not found.settled and found.start == 0.0


def test_few_answers_count_whole() -> None:
    found = find_steady(series([1.0] * 20), 20.0)
    assert found.start == 0.0 and "fewer than 50" in found.reason


@pytest.mark.parametrize(
    ("sent", "counts"),
    [
        (9.0, True),
        (math.nextafter(9.0, 0.0), False),
        (20.0, True),
        (math.nextafter(20.0, 99.0), False),
    ],
)
def test_both_edges_of_the_steady_part_are_within(sent: float, counts: bool) -> None:
    assert Steady(9.0, 20.0, True, "").holds(record(sent=sent)) is counts


def test_the_first_request_after_the_cut_counts_and_the_last_one_cut_does_not() -> None:
    records = series([5.0] * 10 + [1.0] * 90)
    steady = find_steady(records, 99.0)
    assert (steady.start, steady.end, steady.settled) == (10.0, 99.0, True)
    assert [steady.holds(one) for one in records[8:12]] == [False, False, True, True]
    assert steady.holds(records[99])
    assert ran(records, steady) == (10.0, 100.0)


def test_a_run_that_settles_at_its_middle_has_settled_and_one_batch_later_it_has_not() -> None:
    half = find_steady(series([5.0] * 50 + [1.0] * 50), 99.0)
    assert (half.start, half.settled) == (50.0, True)
    later = find_steady(series([5.0] * 55 + [1.0] * 45), 99.0)
    assert (later.start, later.settled) == (0.0, False)


def test_fifty_answers_are_judged_and_one_less_is_not() -> None:
    least = BATCH * LEAST_BATCHES
    latencies = [5.0] * 10 + [1.0] * (least - 10)
    assert find_steady(series(latencies), 50.0).start == 10.0
    fewer = find_steady(series(latencies[:-1]), 50.0)
    assert (fewer.start, fewer.end) == (0.0, 50.0)
    assert f"fewer than {least}" in fewer.reason


def test_answers_that_fill_no_batch_do_not_move_the_cut() -> None:
    assert find_steady(series([5.0] * 10 + [1.0] * 90 + [50.0] * 4), 104.0).start == 10.0


def test_where_no_request_counts_the_steady_part_itself_is_the_time() -> None:
    assert ran(series([1.0] * 5), Steady(30.0, 60.0, True, "")) == (30.0, 60.0)


def run_of(records: list[RequestRecord], steady: Steady) -> RunResult:
    return RunResult(
        scenario={"name": "one"},
        target="here",
        date="",
        machine="",
        seconds=steady.end,
        records=records,
        steady=steady,
        client=ClientLoad(0.1, 0.0, 0.0, 0.0),
        server=ServerSeries(),
        canary=None,
        objectives={"e2e": 100.0},
    )


@pytest.mark.parametrize("sent_until", [0.2, 60.0])
def test_rates_are_over_the_time_in_which_requests_ran(sent_until: float) -> None:
    """Ten requests in 10 s, by a schedule of 0.2 s or of a minute."""
    records = [record(number, sent=0.01 * number, ended=10.0) for number in range(10)]
    result = run_of(records, Steady(0.0, sent_until, True, ""))
    assert result.rates.seconds == pytest.approx(10.0)
    assert result.rates.requests == pytest.approx(1.0)
    assert result.rates.output_tokens == pytest.approx(5.0)
    assert result.goodput is not None and result.goodput.rate == pytest.approx(1.0)


def test_a_warm_up_that_was_cut_is_in_no_rate() -> None:
    early = [record(number, sent=0.0, ended=5.0, token_times=(4.0,)) for number in range(50)]
    late = [record(50 + number, sent=10.0, ended=20.0) for number in range(10)]
    result = run_of([*early, *late], Steady(10.0, 11.0, True, ""))
    assert result.rates.seconds == 10.0 and result.rates.requests == pytest.approx(1.0)

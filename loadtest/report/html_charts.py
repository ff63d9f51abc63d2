"""The charts of a report: one run's, and a sweep's runs over each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from loadtest.report.charts import Axes, Series, line_chart, stacked_chart
from loadtest.report.result import RunResult
from loadtest.report.table import seconds
from loadtest.server.readings import NOT_ITS_OWN
from loadtest.server.scrape import Reading
from loadtest.stats.measures import MEASURES, Measure
from loadtest.stats.records import RequestRecord

DISTRIBUTIONS = tuple(
    measure for measure in MEASURES if measure.name in ("ttft", "itl", "tpot", "e2e")
)
_MOST_DOTS = 2000
_MOST_POINTS = 300
_MOST_MARKS = 6
_SHOWN_SHARE = 0.995  # of a distribution: a few outliers would press the rest into a corner
_GIB = 2.0**30


def distributions(results: Sequence[RunResult]) -> Iterator[str]:
    """A chart a measure, with a line for each run."""
    for measure in DISTRIBUTIONS:
        series = [
            Series(str(result.scenario["arrivals"]), _distribution(measure, result))
            for result in results
        ]
        axes = Axes(measure.title, "share that took no longer", seconds, "{:.0%}".format, 1.0)
        yield line_chart(f"{measure.title}: distribution", axes, series)


def _distribution(measure: Measure, result: RunResult) -> list[tuple[float, float]]:
    """(value, share of values no larger), thinned to what a picture can show."""
    records = [record for record in result.counted if record.ok]
    values = sorted(value for record in records for value in measure.values(record))
    last = min(len(values), max(1, round(len(values) * _SHOWN_SHARE)))
    step = max(1, last // _MOST_POINTS)
    return [(values[place], (place + 1) / len(values)) for place in range(0, last, step)]


def against_load(results: Sequence[RunResult]) -> Iterator[str]:
    """Latencies and throughput over what was asked for, where the runs say it in one unit."""
    loads = [result.scenario["load"] for result in results]
    if None in loads or len({unit for _, unit in loads}) != 1:
        return
    places = [(load[0], result) for load, result in zip(loads, results, strict=True)]
    places.sort(key=lambda place: place[0])
    unit = str(loads[0][1])
    marks = tuple(load for load, _ in places) if len(places) <= _MOST_MARKS else ()
    for measure in DISTRIBUTIONS:
        if measure.name == "tpot":
            continue  # a mean of what ITL shows
        series = []
        for value in (50.0, 95.0, 99.0):
            points = [
                (load, result.summaries[measure.name].percentiles[value].value)
                for load, result in places
                if measure.name in result.summaries
            ]
            series.append(Series(f"p{value:g}", points))
        axes = Axes(unit, measure.title, y_format=seconds, x_marks=marks)
        yield line_chart(f"{measure.title} against load", axes, series)
    tokens = [(load, result.rates.output_tokens) for load, result in places]
    axes = Axes(unit, "output tokens/s", x_marks=marks)
    yield line_chart("Throughput against load", axes, [Series("output tokens/s", tokens)])


def over_time(result: RunResult) -> Iterator[str]:
    """What happened when, at the client and on the server."""
    yield _ttft_over_time([record for record in result.records if record.ok])
    yield _events_over_time(result.records, result.seconds)
    readings = result.server.readings
    if not readings:
        return
    running = (("requests_running", "running"), ("requests_waiting", "waiting"))
    yield _gauges("Requests on the server", "requests", readings, running)
    tokens = (("kv_tokens_reserved", "reserved"), ("kv_tokens_filled", "filled"))
    if any(fact in readings[-1].gauges for fact, _ in tokens):
        yield _gauges("KV cache of live requests", "tokens", readings, tokens)
    yield from _memory(readings)
    rates = server_rate(readings, "generation_tokens")
    if rates:
        axes = Axes("second", "tokens/s")
        yield line_chart("Output, the server's count", axes, [Series("generated tokens", rates)])


def _ttft_over_time(records: Sequence[RequestRecord]) -> str:
    shown = sorted(records, key=lambda record: record.sent)[:: max(1, len(records) // _MOST_DOTS)]
    first = [(r.sent, r.first_token - r.sent) for r in shown if r.first_token is not None]
    axes = Axes("sent at second", "TTFT", y_format=seconds)
    return line_chart("TTFT of each request", axes, [Series("a request", first, dots=True)])


def _events_over_time(records: Sequence[RequestRecord], length: float) -> str:
    counts = [0] * int(length)  # whole seconds only: a piece of one would look like a fall
    for record in records:
        for time in record.token_times:
            if 0 <= time < len(counts):
                counts[int(time)] += 1
    points = [(second + 0.5, float(count)) for second, count in enumerate(counts)]
    axes = Axes("second", "events with text/s")
    return line_chart("Output, as it arrived", axes, [Series("events with text", points)])


def _gauges(
    title: str, unit: str, readings: Sequence[Reading], names: Sequence[tuple[str, str]]
) -> str:
    series = [
        Series(name, [(r.second, r.gauges[fact]) for r in readings if fact in r.gauges])
        for fact, name in names
    ]
    return line_chart(title, Axes("second", unit), series)


def _memory(readings: Sequence[Reading]) -> Iterator[str]:
    """What the server holds, the largest kind at the bottom."""
    last = readings[-1].memory
    kinds = sorted((kind for kind in last if kind not in NOT_ITS_OWN), key=lambda kind: -last[kind])
    whole = [r for r in readings if all(kind in r.memory for kind in kinds)]
    areas = [
        Series(kind, [(r.second, max(0.0, r.memory[kind]) / _GIB) for r in whole])
        for kind in kinds
        if any(r.memory[kind] > 0 for r in whole)
    ]
    if areas:
        yield stacked_chart("Memory that the server holds", Axes("second", "GiB"), areas)


def server_rate(readings: Sequence[Reading], fact: str) -> list[tuple[float, float]]:
    return [
        (b.second, (b.counters[fact] - a.counters[fact]) / (b.second - a.second))
        for a, b in pairwise(readings)
        if fact in a.counters and fact in b.counters and b.second - a.second > 0.2
    ]

"""A report as one self-contained HTML page: figures, tables, definitions. It loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise

from loadtest.charts import Axes, Series, line_chart, stacked_chart
from loadtest.measures import MEASURES, PERCENTILES
from loadtest.page_style import STYLE
from loadtest.records import RequestRecord
from loadtest.result import RunResult
from loadtest.table import render, seconds

_MOST_DOTS = 2000
_DISTRIBUTIONS = ("ttft", "itl", "tpot", "e2e")
_GIB = 2.0**30


def page(results: Sequence[RunResult]) -> str:
    """The page of one run, or of a sweep's runs with their latency against load first."""
    title = f"Load test: {results[-1].scenario['name']}"
    body = [f"<h1>{escape(title)}</h1>"]
    if len(results) > 1:
        body.append(_sweep(results))
    for result in results:
        body.append(_run(result))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _run(result: RunResult) -> str:
    complaints = "".join(f"<li>{escape(line)}</li>" for line in result.complaints)
    parts = [
        f"<section><h2>{escape(str(result.scenario['arrivals']))}</h2>",
        f"<p>{escape(str(result.scenario['description']))}</p>",
        f'<ul class="complaints">{complaints}</ul>' if complaints else "",
        _cards(result),
        '<div class="charts">',
        *_charts(result),
        "</div>",
        f"<details><summary>All figures and their definitions</summary>"
        f"<pre>{escape(render(result))}</pre></details></section>",
    ]
    return "".join(parts)


def _cards(result: RunResult) -> str:
    """The few figures that one looks for first."""
    cells = [("requests/s", f"{result.rates.requests:.2f}")]
    cells.append(("tokens/s out", f"{result.rates.output_tokens:.0f}"))
    for measure in MEASURES:
        summary = result.summaries.get(measure.name)
        if summary is None or measure.name not in _DISTRIBUTIONS:
            continue
        for value in (50.0, 95.0):
            cells.append((f"{measure.title} p{value:g}", seconds(summary.percentiles[value].value)))
    if result.goodput is not None:
        cells.append(("good", f"{result.goodput.share.value:.1%}"))
    items = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in cells)
    return f"<dl>{items}</dl>"


def _charts(result: RunResult) -> Iterator[str]:
    counted = [record for record in result.counted if record.ok]
    for measure in MEASURES:
        if measure.name in _DISTRIBUTIONS:
            values = sorted(value for record in counted for value in measure.values(record))
            yield _distribution(measure.title, values)
    whole = [record for record in result.records if record.ok]
    yield _over_time(whole)
    yield _tokens_per_second(result.records, result.seconds)
    yield from _server_charts(result)


def _distribution(title: str, values: Sequence[float]) -> str:
    """The share of values that are no larger, thinned to what a picture can show."""
    count = len(values)
    step = max(1, count // 300)
    points = [(values[place], (place + 1) / count) for place in range(0, count, step)]
    if points:
        points.append((values[-1], 1.0))
    axes = Axes(title, "share at most so long", seconds, "{:.0%}".format, 1.0)
    return line_chart(f"{title}: distribution", axes, [Series(title, points)])


def _over_time(records: Sequence[RequestRecord]) -> str:
    """Each request's TTFT and E2E where it was sent."""
    shown = sorted(records, key=lambda record: record.sent)[:: max(1, len(records) // _MOST_DOTS)]
    first = [(r.sent, r.first_token - r.sent) for r in shown if r.first_token is not None]
    axes = Axes("sent at second", "TTFT", y_format=seconds)
    return line_chart("TTFT over time", axes, [Series("TTFT", first, dots=True)])


def _tokens_per_second(records: Sequence[RequestRecord], length: float) -> str:
    counts = [0] * (int(length) + 1)
    for record in records:
        for time in record.token_times:
            if 0 <= time < len(counts):
                counts[int(time)] += 1
    points = [(second + 0.5, float(count)) for second, count in enumerate(counts)]
    axes = Axes("second", "events with text a second")
    return line_chart("Output over time", axes, [Series("events with text", points)])


def _server_charts(result: RunResult) -> Iterator[str]:
    readings = result.server.readings
    if not readings:
        return
    names = (("requests_running", "running"), ("requests_waiting", "waiting"))
    series = [
        Series(title, [(r.second, r.gauges[fact]) for r in readings if fact in r.gauges])
        for fact, title in names
    ]
    yield line_chart("Requests on the server", Axes("second", "requests"), series)
    tokens = [
        Series(title, [(r.second, r.gauges[fact]) for r in readings if fact in r.gauges])
        for fact, title in (("kv_tokens_reserved", "reserved"), ("kv_tokens_filled", "filled"))
    ]
    if any(one.points for one in tokens):
        yield line_chart("KV cache", Axes("second", "tokens"), tokens)
    kinds = [kind for kind in readings[-1].memory if kind not in ("free", "other_processes")]
    if kinds:
        whole = [r for r in readings if all(kind in r.memory for kind in kinds)]
        areas = [
            Series(kind, [(r.second, max(0.0, r.memory[kind]) / _GIB) for r in whole])
            for kind in kinds
            if any(r.memory[kind] for r in whole)
        ]
        yield stacked_chart("Server memory", Axes("second", "GiB"), areas)
    rates = [
        (b.second, (b.counters[fact] - a.counters[fact]) / (b.second - a.second))
        for fact in ("generation_tokens",)
        for a, b in pairwise(readings)
        if fact in a.counters and fact in b.counters and b.second > a.second
    ]
    if rates:
        axes = Axes("second", "tokens a second")
        yield line_chart("Tokens by the server's count", axes, [Series("generated", rates)])


def _sweep(results: Sequence[RunResult]) -> str:
    """Latency against the rate that was served."""
    charts = []
    for measure in MEASURES:
        if measure.name not in ("ttft", "itl"):
            continue
        series = []
        for value in (50.0, PERCENTILES[-1]):
            points = sorted(
                (
                    result.rates.output_tokens,
                    result.summaries[measure.name].percentiles[value].value,
                )
                for result in results
                if measure.name in result.summaries
            )
            series.append(Series(f"p{value:g}", points))
        axes = Axes("output tokens/s served", measure.title, y_format=seconds)
        charts.append(line_chart(f"{measure.title} against throughput", axes, series))
    body = f'<div class="charts">{"".join(charts)}</div>'
    return f"<section><h2>Latency against load</h2>{body}</section>"

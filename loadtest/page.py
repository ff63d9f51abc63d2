"""A report as one self-contained HTML page: figures, charts, definitions. It loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from loadtest.page_charts import DISTRIBUTIONS, against_load, distributions, over_time
from loadtest.page_style import STYLE
from loadtest.result import RunResult
from loadtest.table import definitions, render, seconds


def page(results: Sequence[RunResult]) -> str:
    """The page of one run, or of a sweep's runs: first all of them together, then each."""
    title = f"Load test: {results[-1].scenario['name']}"
    body = [f"<h1>{escape(title)}</h1>", _facts(results), _complaints(results)]
    if len(results) > 1:
        body += [_loads(results), _charts((*against_load(results), *distributions(results)))]
        body += [_run(result, opened=result is results[-1]) for result in results]
    else:
        body += [_cards(results[0]), _charts((*distributions(results), *over_time(results[0])))]
        body.append(_figures(results[0]))
    body.append(_definitions(results[-1]))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _facts(results: Sequence[RunResult]) -> str:
    result = results[-1]
    loads = "; ".join(str(one.scenario["arrivals"]) for one in results)
    server = f" ({result.server.server})" if result.server.server else ""
    lines = (
        str(result.scenario["description"]),
        f"{result.target}{server}, {results[0].date}. Client: {result.machine}. "
        f"Arrivals: {loads}; {result.seconds:.0f} s each.",
    )
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _complaints(results: Sequence[RunResult]) -> str:
    several = len(results) > 1
    lines = [
        f"{result.scenario['arrivals']}: {line}" if several else line
        for result in results
        for line in result.complaints
    ]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="complaints">{items}</ul>' if items else ""


def _loads(results: Sequence[RunResult]) -> str:
    """A row for each run."""
    names = [f"{measure.title} {p}" for measure in DISTRIBUTIONS for p in ("p50", "p95")]
    head = ["", "requests/s", "tokens/s", *names, "failed", "client"]
    rows = []
    for result in results:
        cells = [f"{result.rates.requests:.2f}", f"{result.rates.output_tokens:.0f}"]
        cells += [_percentile(result, m.name, p) for m in DISTRIBUTIONS for p in (50.0, 95.0)]
        failed = sum(result.outcomes.values()) - result.outcomes["ok"]
        cells += [str(failed), f"{result.client.cpu:.0%} CPU"]
        name = f"<th>{escape(str(result.scenario['arrivals']))}</th>"
        rows.append(name + "".join(f"<td>{escape(cell)}</td>" for cell in cells))
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{row}</tr>" for row in (top, *rows))
    return f'<div class="wide"><table>{body}</table></div>'


def _percentile(result: RunResult, name: str, percentile: float) -> str:
    summary = result.summaries.get(name)
    return "" if summary is None else seconds(summary.percentiles[percentile].value)


def _run(result: RunResult, opened: bool) -> str:
    """One run of a sweep; its distributions stand above, beside the others'."""
    return (
        f"<details{' open' if opened else ''}>"
        f"<summary><h2>{escape(str(result.scenario['arrivals']))}</h2></summary>"
        f"{_cards(result)}{_charts(over_time(result))}{_figures(result)}</details>"
    )


def _cards(result: RunResult) -> str:
    """The few figures that one looks for first."""
    cells = [
        ("requests/s", f"{result.rates.requests:.2f}"),
        ("tokens/s out", f"{result.rates.output_tokens:.0f}"),
    ]
    for measure in DISTRIBUTIONS:
        for value in (50.0, 95.0):
            shown = _percentile(result, measure.name, value)
            cells += [(f"{measure.title} p{value:g}", shown)] if shown else []
    if result.goodput is not None:
        cells.append(("good", f"{result.goodput.share.value:.1%}"))
    cells.append(("client's CPU", f"{result.client.cpu:.0%}"))
    cells.append(("its loop late p99", seconds(result.client.lag_p99)))
    items = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in cells)
    return f"<dl>{items}</dl>"


def _charts(charts: Iterable[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _figures(result: RunResult) -> str:
    text = escape(render(result))
    return (
        f"<details><summary>All figures, with their intervals</summary><pre>{text}</pre></details>"
    )


def _definitions(result: RunResult) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in definitions(result))
    return f'<h2>Definitions</h2><ul class="definitions">{items}</ul>'

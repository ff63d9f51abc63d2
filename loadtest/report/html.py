"""A report as one self-contained HTML page: figures, charts, definitions. It loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from loadtest.report.html_charts import DISTRIBUTIONS, against_load, distributions, over_time
from loadtest.report.result import RunResult
from loadtest.report.table import definitions, render, seconds


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


# The style sheet of a report, light and dark. Eight colours that the colour-blind can part.

_LIGHT = ("#0b62a3", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be185d", "#4b5563")
_DARK = ("#6db3f2", "#fb923c", "#4ade80", "#c084fc", "#facc15", "#22d3ee", "#f472b6", "#9ca3af")
_DASHES = ("none", "6 3", "2 2", "8 3 2 3", "none", "6 3", "2 2", "8 3 2 3")


def _colours(colours: tuple[str, ...]) -> str:
    rules = []
    for place, colour in enumerate(colours):
        rules.append(f".l{place}{{stroke:{colour};stroke-dasharray:{_DASHES[place]}}}")
        rules.append(f".d{place},.f{place}{{fill:{colour}}}.k{place}{{background:{colour}}}")
    return "".join(rules)


STYLE = (
    """
:root{color-scheme:light dark;--ink:#1c1c1e;--soft:#5c5f66;--line:#d9dbe0;--paper:#fff}
body{margin:0;background:var(--paper);color:var(--ink);
 font:15px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1660px;margin:0 auto;padding:24px 16px}
h1{font-size:22px;margin:0 0 16px}h2{font-size:17px;margin:28px 0 8px}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(118px,1fr));gap:8px;margin:12px 0}
dl div{border:1px solid var(--line);border-radius:6px;padding:8px 10px}
dt{color:var(--soft);font-size:12px}dd{margin:0;font-size:18px;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:16px}
figure{margin:0}figcaption{font-weight:600;font-size:13px;margin-bottom:4px}
figure ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 14px;margin:4px 0 0;padding:0;
 font-size:12px;color:var(--soft)}
figure i{display:inline-block;width:10px;height:10px;margin-right:5px;border-radius:2px}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--soft);font-size:11px}svg .t{font-size:12px}
.g{stroke:var(--line);stroke-width:1}polyline{fill:none;stroke-width:1.8}
.complaints{border-left:4px solid #c2410c;padding:8px 8px 8px 26px;margin:12px 0}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;
 font-size:13px;margin:12px 0 20px}th{font-weight:600;text-align:left}
td,tr:first-child th{text-align:right;white-space:nowrap}tr:first-child th{color:var(--soft)}
td,th{padding:5px 8px;border-bottom:1px solid var(--line)}
.definitions{color:var(--soft);font-size:13px;padding-left:20px}summary h2{display:inline}
pre{overflow-x:auto;font:12px/1.5 ui-monospace,monospace}summary{cursor:pointer;margin:14px 0}
"""
    + _colours(_LIGHT)
    + "@media (prefers-color-scheme:dark){:root{--ink:#e8e8ea;--soft:#a5a8b0;--line:#3a3c42;"
    + "--paper:#17181b}"
    + _colours(_DARK)
    + "}"
)

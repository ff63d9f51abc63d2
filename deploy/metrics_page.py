"""``python -m deploy.metrics_page``: writes METRICS.md, every metric of the registry in a table.

With ``--check`` nothing is written; exit code 1 where the file is not what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from server.metrics.registry import METRICS
from server.metrics.spec import Label, MetricSpec

PAGE = Path(__file__).parent / "METRICS.md"

_HEAD = """# Metrics

All that `GET /metrics` exports, made from `server/metrics/registry.py` by `python -m
deploy.metrics_page`.

Counters only rise, and begin again with their process: read them through `rate()`. Those of
requests live in the API process and survive a restart of the engine. A histogram has the series
`_bucket`, `_sum` and `_count`. Times are seconds, sizes bytes, shares 0 to 1. A label without
values here has those of the model, the machine or the request.

| metric | type | unit | labels | what it is |
|---|---|---|---|---|
"""


def page() -> str:
    """The file's text."""
    return _HEAD + "".join(_line(metric) for metric in METRICS)


def _line(metric: MetricSpec) -> str:
    labels = "; ".join(_label(label) for label in metric.labels)
    return f"| `{metric.name}` | {metric.type} | {metric.unit} | {labels} | {metric.help} |\n"


def _label(label: Label) -> str:
    return f"`{label.name}`" + (f": {', '.join(label.values)}" if label.values else "")


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        if PAGE.exists() and PAGE.read_text() == page():
            return 0
        print(f"{PAGE.name} is not what the registry says: run python -m deploy.metrics_page")
        return 1
    if arguments:
        print("usage: python -m deploy.metrics_page [--check]", file=sys.stderr)
        return 2
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Whether a dashboard's JSON is right: that it asks for what exists, and shows it as what it is.

Works on the JSON and not on what it was made from, so that an edit by hand is found too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.catalogue import TARGET_LABELS, Catalogue, Quantity
from deploy.grafana.panels import COLUMNS, DATASOURCE, Json
from deploy.promql import Meaning, QueryError, meaning, selectors
from server.metrics.spec import Unit

_COUNT_UNITS = frozenset({"short", "none"})
_UNITS: Mapping[Quantity, frozenset[str]] = {
    Quantity(Unit.BYTES): frozenset({"bytes"}),
    Quantity(Unit.BYTES, per_second=True): frozenset({"binBps"}),
    Quantity(Unit.SECONDS): frozenset({"s"}),
    Quantity(Unit.SECONDS, per_second=True): frozenset({"percentunit"}),
    Quantity(Unit.RATIO): frozenset({"percentunit"}),
    Quantity(Unit.FLAG): frozenset({"none"}),
    Quantity(Unit.TOKENS, per_second=True): frozenset({"suffix: tokens/s"}),
    Quantity(Unit.REQUESTS, per_second=True): frozenset({"reqps"}),
    Quantity(Unit.STEPS, per_second=True): frozenset({"ops"}),
    Quantity(Unit.EVENTS, per_second=True): frozenset({"eps"}),
}
_VARIABLES = ("datasource", "job", "model", "instance")
_RATE_INTERVAL = "$__rate_interval"
_ANY_RATE = re.compile(r"\b(?:i?rate)\(")
_INTERVAL = re.compile(r"\[(\$?\w+)\]")
_LEGEND_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def faults(dashboard: Json, catalogue: Catalogue) -> Iterator[str]:
    """What is wrong with it, a sentence each; nothing where it is right."""
    yield from _variable_faults(dashboard, catalogue)
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    if not panels:
        yield "it has no panel"
    numbers = [panel["id"] for panel in dashboard["panels"]]
    if len(set(numbers)) != len(numbers):
        yield "two panels have the same id"
    titles = [panel["title"] for panel in dashboard["panels"]]
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        yield f"two panels are called {title}"
    yield from _layout_faults(dashboard["panels"])
    for panel in panels:
        for fault in _panel_faults(panel, catalogue):
            yield f"{panel.get('title') or 'a panel without a title'}: {fault}"


def queries(dashboard: Json) -> Iterator[tuple[str, str]]:
    """(panel's title, query) of every query that it sends."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def _variable_faults(dashboard: Json, catalogue: Catalogue) -> Iterator[str]:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    if tuple(variables) != _VARIABLES:
        yield f"its variables are {', '.join(variables)}, not {', '.join(_VARIABLES)}"
    for name, variable in variables.items():
        if variable["type"] != "query":
            continue
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        if found is None:
            yield f"the variable {name} is not a label_values(metric, label)"
            continue
        try:
            labels = meaning(found[1], catalogue).labels or ()
        except QueryError as error:
            yield f"the variable {name}: {error}"
            continue
        if found[2] not in labels:
            yield f"the variable {name} asks for the label {found[2]!r}, which is not there"
        if variable["datasource"] != DATASOURCE:
            yield f"the variable {name} has a datasource of its own"


def _layout_faults(panels: list[Json]) -> Iterator[str]:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        at, title = panel["gridPos"], panel["title"]
        if at["x"] < 0 or at["x"] + at["w"] > COLUMNS:
            yield f"{title}: it does not fit the {COLUMNS} columns"
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                if (x, y) in taken:
                    yield f"{title}: it lies over {taken[x, y]}"
                    return
                taken[x, y] = title


def _panel_faults(panel: Json, catalogue: Catalogue) -> Iterator[str]:
    if not panel.get("title"):
        yield "no title"
    if not str(panel.get("description", "")).endswith("."):
        yield "no description in a whole sentence"
    if not panel["targets"]:
        yield "no query"
    for part in (panel, *panel["targets"]):
        if part.get("datasource") != DATASOURCE:
            yield f"its datasource is {part.get('datasource')} and not the variable"
            break
    references = [target["refId"] for target in panel["targets"]]
    if len(set(references)) != len(references):
        yield "two queries have the same refId"
    for target in panel["targets"]:
        try:
            yield from _query_faults(panel, target, catalogue)
        except QueryError as error:
            yield f"{error}: {target['expr']}"


def _query_faults(panel: Json, target: Json, catalogue: Catalogue) -> Iterator[str]:
    query = target["expr"]
    plain = query.replace(_RATE_INTERVAL, "1m")
    found = meaning(plain, catalogue)
    unit = _unit(panel, target["refId"])
    allowed = _UNITS.get(found.quantity, _COUNT_UNITS)
    if unit not in allowed:
        yield f"{found.quantity} is shown as {unit!r} and not as {', '.join(sorted(allowed))}"
    for label in _LEGEND_LABEL.findall(target["legendFormat"]):
        if label not in (found.labels or ()):
            yield f"its legend names {label!r}, which the answer does not have: {query}"
    if _several(found):
        yield f"it shows every target's series as it comes: add them up, or take the most: {query}"
    if len(panel["targets"]) > 1 and not target["legendFormat"]:
        yield f"several queries, and no legend for {query}"
    if _ANY_RATE.search(query) and set(_INTERVAL.findall(query)) != {_RATE_INTERVAL}:
        yield f"a rate over another time than {_RATE_INTERVAL}: {query}"
    for name, matchers in selectors(plain):
        for label in TARGET_LABELS:
            if matchers.get(label) != f"=~${label}":
                yield f"{name} is not asked for the chosen {label}: {query}"


def _several(found: Meaning) -> bool:
    """Whether it is undefined how several targets go together."""
    return set(TARGET_LABELS) <= (found.labels or frozenset())


def _unit(panel: Json, reference: str) -> Any:
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == f"Value #{reference}":
            for property in override["properties"]:
                if property["id"] == "unit":
                    return property["value"]
    return panel["fieldConfig"]["defaults"].get("unit")

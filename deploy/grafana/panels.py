"""Panels and dashboards as data, and the JSON that Grafana reads.

Only panels that look the same from Grafana 11 on are used: time series, stat, bar gauge, table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

DATASOURCE: Mapping[str, str] = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24  # the width of Grafana's grid
SCHEMA_VERSION = 41


@dataclass(frozen=True, slots=True)
class Query:
    """``legend`` may name labels of the answer as ``{{label}}``. ``unit`` is for a table's column
    or a line that differs from its panel's."""

    expr: str
    legend: str = ""
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """What all panels have. Width and height are in cells of the grid.

    ``thresholds`` are (from this value on, colour), beginning with green.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    height: int = 8
    thresholds: tuple[tuple[float, str], ...] = ()
    texts: tuple[tuple[str, str, str], ...] = ()  # value, text, colour


@dataclass(frozen=True, slots=True)
class Graph(Panel):
    """Lines over time. ``stacked`` fills the areas between them, but for those in ``lines``."""

    stacked: bool = False
    lines: tuple[str, ...] = ()  # legends drawn as dashed lines of their own
    ratio: bool = False  # the axis goes from 0 to 1


@dataclass(frozen=True, slots=True)
class Stat(Panel):
    """One figure of now, with its recent past behind it."""

    width: int = 4
    height: int = 4


@dataclass(frozen=True, slots=True)
class Bars(Panel):
    """A bar for each series of now, the longest first."""


@dataclass(frozen=True, slots=True)
class Table(Panel):
    """A row for each value of the label ``key``, a column for each query, headed by its legend."""

    key: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]


def panel_json(panel: Panel, number: int, position: Json) -> Json:
    kind, options, custom = _look(panel)
    return {
        "id": number,
        "type": kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": dict(DATASOURCE),
        "gridPos": position,
        "targets": [_target(panel, i, query) for i, query in enumerate(panel.queries)],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "color": {"mode": _color(panel)},
                "thresholds": _thresholds(panel.thresholds),
                "mappings": list(_mappings(panel)),
                **({"min": 0, "max": 1} if isinstance(panel, Graph) and panel.ratio else {}),
                "custom": custom,
            },
            "overrides": list(_overrides(panel)),
        },
        "options": options,
        **({"transformations": _joined(panel)} if isinstance(panel, Table) else {}),
    }


def place(rows: Sequence[Row]) -> Iterator[Json]:
    """Rows from top to bottom; in each, panels from left to right, and on where one is full."""
    number, y = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            "panels": [],
        }
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            number += 1
            position = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            yield panel_json(panel, number, position)
            x, height = x + panel.width, max(height, panel.height)
        y += height


def _target(panel: Panel, index: int, query: Query) -> Json:
    now = not isinstance(panel, Graph | Stat)
    return {
        "refId": ref_id(index),
        "datasource": dict(DATASOURCE),
        "expr": query.expr,
        "legendFormat": query.legend,
        "instant": now,
        "range": not now,
        "format": "table" if isinstance(panel, Table) else "time_series",
        "editorMode": "code",
    }


def ref_id(index: int) -> str:
    return chr(ord("A") + index)


def _look(panel: Panel) -> tuple[str, Json, Json]:
    """Grafana's name of the panel, its options, and what its fields have of their own."""
    now = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    # A share of no requests is not a number: to be said, and not passed over for an older one.
    last = {**now, "calcs": ["last"]}
    match panel:
        case Graph():
            return "timeseries", _GRAPH_OPTIONS, _graph_fields(panel)
        case Stat():
            return "stat", {**_STAT_OPTIONS, "reduceOptions": last}, {}
        case Bars():
            return "bargauge", {**_BARS_OPTIONS, "reduceOptions": now}, {}
        case Table():
            options = {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}
            return (
                "table",
                options,
                {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False},
            )
    raise TypeError(f"no look for a {type(panel).__name__}")


_LEGEND: Json = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
_GRAPH_OPTIONS: Json = {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}}
_STAT_OPTIONS: Json = {
    "orientation": "auto",
    "colorMode": "value",
    "graphMode": "area",
    "justifyMode": "auto",
    "textMode": "auto",
    "wideLayout": True,
    "showPercentChange": False,
    "percentChangeColorMode": "standard",
}
_BARS_OPTIONS: Json = {
    "orientation": "horizontal",
    "displayMode": "basic",
    "valueMode": "color",
    "namePlacement": "left",
    "showUnfilled": True,
    "sizing": "auto",
    "minVizHeight": 16,
    "minVizWidth": 8,
    "maxVizHeight": 300,
    "legend": {**_LEGEND, "showLegend": False},
}


def _graph_fields(panel: Graph) -> Json:
    return {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 70 if panel.stacked else 8,
        "gradientMode": "none",
        "showPoints": "never",
        "spanNulls": False,
        "axisSoftMin": 0,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if panel.thresholds else "off"},
    }


def _color(panel: Panel) -> str:
    return "thresholds" if isinstance(panel, Stat) else "palette-classic-by-name"


def _thresholds(steps: tuple[tuple[float, str], ...]) -> Json:
    first: Json = {"color": "green", "value": None}
    return {
        "mode": "absolute",
        "steps": [first, *({"color": color, "value": value} for value, color in steps)],
    }


def _mappings(panel: Panel) -> Iterator[Json]:
    if panel.texts:
        yield _mapping(panel.texts)
    if isinstance(panel, Stat):
        idle = {"text": "idle", "color": "text", "index": len(panel.texts)}
        yield {"type": "special", "options": {"match": "nan", "result": idle}}


def _mapping(texts: tuple[tuple[str, str, str], ...]) -> Json:
    options = {
        value: {"text": text, "color": color, "index": index}
        for index, (value, text, color) in enumerate(texts)
    }
    return {"type": "value", "options": options}


def _overrides(panel: Panel) -> Iterator[Json]:
    if isinstance(panel, Graph):
        for legend in panel.lines:
            yield {
                "matcher": {"id": "byName", "options": legend},
                "properties": [
                    {"id": "custom.stacking", "value": {"mode": "none", "group": "B"}},
                    {"id": "custom.fillOpacity", "value": 0},
                    {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
                    {"id": "custom.lineWidth", "value": 2},
                ],
            }
    for index, query in enumerate(panel.queries):
        if query.unit is not None:
            yield {
                "matcher": {"id": "byName", "options": f"Value #{ref_id(index)}"},
                "properties": [{"id": "unit", "value": query.unit}],
            }


def _joined(panel: Table) -> list[Json]:
    """One table of the queries' answers. Grafana calls their columns "Value #A", "Value #B" ..."""
    columns = {f"Value #{ref_id(i)}": query.legend for i, query in enumerate(panel.queries)}
    hidden = dict.fromkeys(("Time", *(f"Time {i + 1}" for i in range(len(columns)))), True)
    order = {name: index for index, name in enumerate((panel.key, *columns))}
    return [
        {"id": "joinByField", "options": {"byField": panel.key, "mode": "outer"}},
        {
            "id": "organize",
            "options": {"excludeByName": hidden, "indexByName": order, "renameByName": columns},
        },
    ]

"""A dashboard's JSON: its panels, and around them what is the same for all three."""

from __future__ import annotations

import json

from deploy.grafana.panels import DATASOURCE, SCHEMA_VERSION, Dashboard, Json, place
from server.metrics.registry import ENGINE_UP, MODEL_INFO

TAG = "quire"


def render(dashboard: Dashboard) -> str:
    """The file's text. The same dashboard gives the same text."""
    return json.dumps(dashboard_json(dashboard), indent=2, ensure_ascii=False) + "\n"


def dashboard_json(dashboard: Dashboard) -> Json:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [_other_dashboards()],
        "templating": {"list": _variables()},
        "panels": list(place(dashboard.rows)),
    }


def _other_dashboards() -> Json:
    return {
        "type": "dashboards",
        "title": "Quire",
        "tags": [TAG],
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }


def _variables() -> list[Json]:
    """Each narrows the next: the job, the models that it serves, the instances that serve them."""
    model_of_job = f'{MODEL_INFO.name}{{job=~"$job"}}'
    instance_of_model = f'{MODEL_INFO.name}{{job=~"$job", model=~"$model"}}'
    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "hide": 0,
            "includeAll": False,
            "multi": False,
        },
        _choice("job", "Job", f"label_values({ENGINE_UP.name}, job)"),
        _choice("model", "Model", f"label_values({model_of_job}, model)"),
        _choice("instance", "Instance", f"label_values({instance_of_model}, instance)"),
    ]


def _choice(name: str, label: str, query: str) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": dict(DATASOURCE),
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }

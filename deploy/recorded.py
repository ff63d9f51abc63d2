"""The rules file as data: what it records, and what it alarms on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from deploy.catalogue import Series, metric_catalogue
from deploy.promql import meaning

RULES = Path(__file__).parent / "prometheus" / "rules" / "quire.yml"


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    query: str
    hold: str  # how long it must be true, as Prometheus writes it
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def read_rules(path: Path = RULES) -> tuple[dict[str, str], list[Alert]]:
    """Recorded names with their queries, in order, and the alerts."""
    recorded: dict[str, str] = {}
    alerts: list[Alert] = []
    for group in yaml.safe_load(path.read_text())["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                recorded[rule["record"]] = rule["expr"]
                continue
            alerts.append(
                Alert(
                    name=rule["alert"],
                    query=rule["expr"],
                    hold=rule.get("for", "0s"),
                    labels=rule["labels"],
                    annotations=rule["annotations"],
                )
            )
    return recorded, alerts


def full_catalogue(path: Path = RULES) -> dict[str, Series]:
    """The metrics and what the rules record of them.

    Raises:
        QueryError: a recorded query cannot be meant.
    """
    catalogue = metric_catalogue()
    for name, query in read_rules(path)[0].items():
        found = meaning(query, catalogue)
        labels = dict.fromkeys(sorted(found.labels or ()))
        catalogue[name] = Series(found.form, found.quantity, labels)
    return catalogue

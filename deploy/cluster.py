"""``python -m deploy.cluster``: writes what Kubernetes is given of the rules and the dashboards.

An operator reads rules from a PrometheusRule, and Grafana's sidecar reads dashboards from
ConfigMaps; both say what prometheus/rules and grafana/dashboards say, and nothing else. With
``--check`` nothing is written, and the exit code is 1 where a file differs from what would be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.grafana.generate import rendered

RULES = Path(__file__).parent / "prometheus" / "rules" / "quire.yml"
FOLDER = Path(__file__).parent / "kubernetes" / "monitoring"
_LABELS = "{ app.kubernetes.io/name: quire, app.kubernetes.io/part-of: quire }"


def manifests() -> dict[str, str]:
    """File names and texts."""
    return {"prometheus-rule.yaml": prometheus_rule(), "dashboards.yaml": dashboards()}


def prometheus_rule() -> str:
    """The rules file as an object of the Prometheus operator."""
    comments, groups, rest = RULES.read_text(encoding="utf-8").partition("groups:\n")
    return (
        "# Made by python -m deploy.cluster from deploy/prometheus/rules/quire.yml. An operator\n"
        "# that selects rules by label wants that label here: often release: NAME_OF_ITS_CHART.\n"
        "apiVersion: monitoring.coreos.com/v1\n"
        "kind: PrometheusRule\n"
        "metadata:\n"
        "  name: quire\n"
        f"  labels: {_LABELS}\n"
        "spec:\n" + _indented(comments + groups + rest, 2)
    )


def dashboards() -> str:
    """A ConfigMap for each dashboard, with the label that Grafana's sidecar looks for."""
    return "---\n".join(
        (
            "# Made by python -m deploy.cluster from deploy/grafana/dashboards.\n"
            "apiVersion: v1\n"
            "kind: ConfigMap\n"
            "metadata:\n"
            f"  name: {name.removesuffix('.json')}-dashboard\n"
            f'  labels: {_LABELS[:-2]}, grafana_dashboard: "1" }}\n'
            "data:\n"
            f"  {name}: |\n" + _indented(text, 4)
        )
        for name, text in rendered().items()
    )


def _indented(text: str, spaces: int) -> str:
    return "".join(
        " " * spaces + line if line.strip() else line for line in text.splitlines(keepends=True)
    )


def write(folder: Path = FOLDER) -> list[Path]:
    """Writes all manifests; returns the files."""
    written = []
    for name, text in manifests().items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


def check(folder: Path = FOLDER) -> Iterator[str]:
    """What is wrong with the folder, a sentence each."""
    for name, text in manifests().items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            yield f"{name}: not what is generated: run python -m deploy.cluster"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.cluster", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, find faults")
    if not parser.parse_args(arguments).check:
        for path in write():
            print(path)
        return 0
    found = list(check())
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m deploy.grafana.generate``: writes the dashboards. With ``--check``: finds faults.

The check compares the files with what would be written, and looks at every query of them: each
metric, label and label value exists, counters go through a rate, several targets are added up or
the most of them is taken, and the unit is that of the result. Exit code 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.grafana.check import faults
from deploy.grafana.engine import ENGINE
from deploy.grafana.memory import MEMORY
from deploy.grafana.render import render
from deploy.grafana.serving import SERVING
from deploy.recorded import full_catalogue

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS = (MEMORY, SERVING, ENGINE)


def rendered() -> dict[str, str]:
    """File names and texts."""
    return {f"{dashboard.uid}.json": render(dashboard) for dashboard in DASHBOARDS}


def write(folder: Path = FOLDER) -> list[Path]:
    """Writes all dashboards; returns the files."""
    written = []
    for name, text in rendered().items():
        (folder / name).write_text(text)
        written.append(folder / name)
    return written


def check(folder: Path = FOLDER) -> Iterator[str]:
    """What is wrong with the folder, a sentence each."""
    texts = rendered()
    for path in sorted(folder.glob("*.json")):
        if path.name not in texts:
            yield f"{path.name}: no dashboard makes this file"
    catalogue = full_catalogue()
    for name, text in texts.items():
        path = folder / name
        if not path.exists():
            yield f"{name}: it is missing"
            continue
        committed = path.read_text()
        if committed != text:
            yield f"{name}: not what is generated: run python -m deploy.grafana.generate"
        for fault in faults(json.loads(committed), catalogue):
            yield f"{name}: {fault}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, find faults")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are")
    chosen = parser.parse_args(arguments)
    if not chosen.check:
        for path in write(chosen.folder):
            print(path)
        return 0
    found = list(check(chosen.folder))
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

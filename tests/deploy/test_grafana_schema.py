"""The dashboards against the schema that Grafana publishes: its own types, and its own panels'."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.generate import FOLDER
from tests.deploy.deploy_tools import do_without, needed

Json = dict[str, Any]
SCHEMA = Path(__file__).parent / "grafana_schema"
DASHBOARDS = {path.stem.replace("-", "_"): path for path in sorted(FOLDER.glob("*.json"))}
COMPILER_OPTIONS = ("--noEmit", "--strict", "--skipLibCheck", "--target", "es2022")
MODULES = ("--module", "esnext", "--moduleResolution", "bundler")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Grafana's types and the compiler, as grafana_schema/package.json pins them."""
    npm = needed("npm", "npm")
    folder = tmp_path_factory.mktemp("grafana") / "schema"
    shutil.copytree(SCHEMA, folder)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
    if done.returncode:
        do_without(f"npm could not install Grafana's schema: {done.stderr.decode()[-300:]}")
    return folder


def compile_all(folder: Path, dashboards: dict[str, Json], type: str) -> dict[str, list[str]]:
    """What the compiler says of each, by name."""
    for name, dashboard in dashboards.items():
        (folder / f"{name}.ts").write_text(
            f'import type {{ {type} }} from "./types";\n'
            f"export const dashboard: {type} = {json.dumps(dashboard, indent=1)};\n"
        )
    files = [f"{name}.ts" for name in dashboards]
    command = [folder / "node_modules/.bin/tsc", *COMPILER_OPTIONS, *MODULES, *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
    said = done.stdout.decode().splitlines()
    elsewhere = [line for line in said if line.startswith("types.ts")]
    assert not elsewhere, f"the types themselves do not compile: {elsewhere}"
    return {name: [line for line in said if line.startswith(f"{name}.ts(")] for name in dashboards}


def committed() -> dict[str, Json]:
    return {name: json.loads(path.read_text()) for name, path in DASHBOARDS.items()}


@pytest.mark.parametrize("type", ["PublishedDashboard", "Dashboard"])
def test_each_dashboard_is_one_by_grafanas_own_types(workshop: Path, type: str) -> None:
    dashboards = committed()
    assert len(dashboards) == 3
    assert compile_all(workshop, dashboards, type) == {name: [] for name in dashboards}


def first(of: Json, kind: str) -> Json:
    found: Json = next(panel for panel in of["panels"] if panel["type"] == kind)
    return found


def delete_schema_version(of: Json) -> None:
    del of["schemaVersion"]


def wrong_word_in_the_dashboard(of: Json) -> None:
    of["titel"] = of.pop("title")


def position_as_text(of: Json) -> None:
    first(of, "stat")["gridPos"]["x"] = "0"


def color_mode_that_is_none(of: Json) -> None:
    first(of, "timeseries")["fieldConfig"]["defaults"]["color"]["mode"] = "rainbow"


def misspelt_option(of: Json) -> None:
    first(of, "stat")["options"]["colourMode"] = "value"


def legend_place_that_is_none(of: Json) -> None:
    first(of, "timeseries")["options"]["legend"]["placement"] = "left"


def stacking_of_no_kind(of: Json) -> None:
    first(of, "timeseries")["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] = "high"


def misspelt_query(of: Json) -> None:
    target = first(of, "bargauge")["targets"][0]
    target["expression"] = target.pop("expr")


def option_missing(of: Json) -> None:
    del first(of, "table")["options"]["showHeader"]


MISTAKES: tuple[Callable[[Json], None], ...] = (
    *(delete_schema_version, wrong_word_in_the_dashboard, position_as_text),
    *(color_mode_that_is_none, misspelt_option, legend_place_that_is_none, stacking_of_no_kind),
    *(misspelt_query, option_missing),
)


def test_mistakes_in_a_dashboard_are_errors_of_the_types(workshop: Path) -> None:
    memory = committed()["quire_memory"]
    wrong = {}
    for mistake in MISTAKES:
        wrong[mistake.__name__] = copy.deepcopy(memory)
        mistake(wrong[mistake.__name__])
    found = compile_all(workshop, wrong, "Dashboard")
    assert [name for name, errors in found.items() if not errors] == []

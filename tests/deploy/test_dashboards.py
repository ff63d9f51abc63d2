"""The dashboards are those of the generator, and its check finds what is planted in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.check import faults
from deploy.grafana.generate import DASHBOARDS, FOLDER, check, main, rendered, write
from deploy.grafana.render import dashboard_json
from deploy.recorded import full_catalogue

Json = dict[str, Any]
CATALOGUE = full_catalogue()


def dashboard(index: int = 0) -> Json:
    return dashboard_json(DASHBOARDS[index])


def panel(of: Json, title: str) -> Json:
    found: Json
    (found,) = (panel for panel in of["panels"] if panel["title"] == title)
    return found


def edit(title: str, old: str, new: str) -> Callable[[Json], Json]:
    """Replaces ``old`` in the panel's first query."""

    def change(of: Json) -> Json:
        target = panel(of, title)["targets"][0]
        assert old in target["expr"]
        target["expr"] = target["expr"].replace(old, new)
        return of

    return change


def put(title: str, path: str, value: object) -> Callable[[Json], Json]:
    """Sets a value inside the panel; ``path`` is of keys and indices with dots."""

    def change(of: Json) -> Json:
        where: Any = panel(of, title)
        *before, last = path.split(".")
        for key in before:
            where = where[int(key)] if key.isdigit() else where[key]
        where[last] = value
        return of

    return change


def change_variable(index: int, query: str) -> Callable[[Json], Json]:
    def change(of: Json) -> Json:
        of["templating"]["list"][index]["query"]["query"] = query
        return of

    return change


def test_the_committed_dashboards_have_no_fault() -> None:
    assert list(check()) == []


def test_there_are_three_for_memory_serving_and_engine() -> None:
    assert sorted(rendered()) == ["quire-engine.json", "quire-memory.json", "quire-serving.json"]


def test_the_same_dashboards_give_the_same_files(tmp_path: Path) -> None:
    written = list(write(tmp_path))
    assert len(written) == 3
    for path in written:
        assert path.read_text() == (FOLDER / path.name).read_text()


BY_KIND, RUNNING, TTFT = "All memory by kind", "Requests running and waiting", "Time to first token"
ANSWERS = "HTTP answers by status"
RATE = "sum by (status) (rate("


@pytest.mark.parametrize(
    ("number", "mistake", "reason"),
    [
        (0, edit(BY_KIND, "quire_memory_bytes", "quire_memory"), "no metric 'quire_memory'"),
        (0, edit(BY_KIND, "by (kind)", "by (sort)"), "grouped by 'sort'"),
        (0, edit("Unaccounted", "unaccounted", "lost"), "kind is never 'lost'"),
        (0, edit(BY_KIND, "sum by (kind)", ""), "it shows every target's series"),
        (0, edit("KV cache in use", "max", "sum"), "a sum of ratio says nothing"),
        (0, edit(BY_KIND, 'job=~"$job", ', ""), "is not asked for the chosen job"),
        (0, edit(BY_KIND, '$instance"', 'a|b"'), "is not asked for the chosen instance"),
        (0, put(BY_KIND, "fieldConfig.defaults.unit", "decbytes"), "bytes is shown as 'decbytes'"),
        (0, put(BY_KIND, "targets.0.legendFormat", "{{state}}"), "its legend names 'state'"),
        (0, put(BY_KIND, "targets.0.legendFormat", ""), "no legend"),
        (0, put(BY_KIND, "datasource", {"type": "prometheus", "uid": "x"}), "not the variable"),
        (0, put(BY_KIND, "targets.1.datasource", None), "not the variable"),
        (0, put(BY_KIND, "targets.1.refId", "A"), "the same refId"),
        (0, put(BY_KIND, "description", ""), "no description"),
        (0, put(BY_KIND, "title", ""), "no title"),
        (0, put(BY_KIND, "id", 1), "the same id"),
        (0, put(BY_KIND, "title", "Host memory"), "two panels are called Host memory"),
        (0, put(BY_KIND, "targets", []), "no query"),
        (0, put(BY_KIND, "gridPos.x", 20), "does not fit"),
        (0, put(BY_KIND, "gridPos.y", 0), "it lies over"),
        (0, put("Planned beside measured", "fieldConfig.overrides", []), "ratio is shown as"),
        (1, edit(ANSWERS, "rate(", "("), "no PromQL"),
        (1, edit(ANSWERS, "(rate(", "(irate("), None),
        (1, edit(ANSWERS, "[$__rate_interval]", "[5m]"), "a rate over another time"),
        (1, edit(ANSWERS, "rate(", "avg_over_time("), "avg_over_time() of a counter"),
        (1, edit(RUNNING, "sum (", "sum (deriv("), "no PromQL"),
        (1, put(RUNNING, "targets.0.expr", "sum (rate(quire_requests_running[1m]))"), "of a value"),
        (1, edit(TTFT, "by (le)", "by (job)"), "buckets are added up by le"),
        (1, edit(TTFT, "_bucket", "_sum"), "grouped by 'le'"),
        (1, put(TTFT, "fieldConfig.defaults.unit", "ms"), "seconds is shown as 'ms'"),
        (1, put(ANSWERS, "fieldConfig.defaults.unit", "short"), "requests per second is shown"),
        (1, edit("Errors", ":ratio_rate5m", ":ratio_rate1m"), "there is no metric"),
        (2, change_variable(1, "label_values(quire_engine, job)"), "the variable job"),
        (2, change_variable(2, "label_values(quire_model_info, name)"), "the label 'name'"),
        (2, change_variable(3, "query_result(up)"), "is not a label_values"),
    ],
)
def test_a_planted_mistake_is_found(
    number: int, mistake: Callable[[Json], Json], reason: str | None
) -> None:
    assert list(faults(dashboard(number), CATALOGUE)) == []
    found = list(faults(mistake(dashboard(number)), CATALOGUE))
    assert bool(found) == (reason is not None)
    assert reason is None or any(reason in fault for fault in found), found


def test_a_file_edited_by_hand_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "dashboards"
    shutil.copytree(FOLDER, folder)
    arguments = ["--check", "--folder", str(folder)]
    assert main(arguments) == 0
    edited = json.loads((folder / "quire-memory.json").read_text())
    edited["title"] = "Mine"
    (folder / "quire-memory.json").write_text(json.dumps(edited))
    (folder / "quire-serving.json").unlink()
    (folder / "other.json").write_text("{}")
    assert main(arguments) == 1
    assert capsys.readouterr().err.splitlines() == [
        "other.json: no dashboard makes this file",
        "quire-memory.json: not what is generated: run python -m deploy.grafana.generate",
        "quire-serving.json: it is missing",
    ]
    assert main(["--folder", str(folder)]) == 0
    (folder / "other.json").unlink()
    assert main(arguments) == 0


def test_the_stacked_areas_are_all_kinds_and_their_line_is_the_total() -> None:
    chart = panel(dashboard(), BY_KIND)
    by_kind, total = (target["expr"] for target in chart["targets"])
    assert by_kind == 'sum by (kind) (quire_memory_bytes{job=~"$job", instance=~"$instance"})'
    assert total == 'sum (quire_memory_total_bytes{job=~"$job", instance=~"$instance"})'
    assert chart["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    (line,) = chart["fieldConfig"]["overrides"]
    assert line["matcher"] == {"id": "byName", "options": "total"}
    assert {"id": "custom.stacking", "value": {"mode": "none", "group": "B"}} in line["properties"]


def test_the_alarms_bound_is_drawn_where_the_cache_is_shown() -> None:
    for number, title in ((0, "Blocks in use"), (2, "Blocks in use"), (0, "KV cache in use")):
        steps = panel(dashboard(number), title)["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps[-1] == {"color": "red", "value": 0.9}


def test_a_share_of_nothing_is_called_idle_and_is_no_older_figure() -> None:
    stats = [p for i in range(3) for p in dashboard(i)["panels"] if p["type"] == "stat"]
    assert stats
    for one in stats:
        assert one["options"]["reduceOptions"]["calcs"] == ["last"], one["title"]
        (nan,) = (m for m in one["fieldConfig"]["defaults"]["mappings"] if m["type"] == "special")
        assert (nan["options"]["match"], nan["options"]["result"]["text"]) == ("nan", "idle")


def test_bytes_of_a_request_are_not_divided_by_none() -> None:
    (target,) = panel(dashboard(), "Held for each running request")["targets"]
    assert target["expr"].rpartition(" / ")[2].endswith(" > 0)")

"""The alarms: each can be meant, says what to do, fires when it should, and is quiet otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from deploy.catalogue import NUMBER
from deploy.promql import meaning
from deploy.recorded import RULES, Alert, full_catalogue, read_rules
from tests.deploy.alarm_cases import FIRES, QUIET, Fires, Quiet
from tests.deploy.deploy_tools import DEPLOY, needed, run

RECORDED, ALERTS = read_rules()
LABEL = re.compile(r"\{\{ \$labels\.(\w+) \}\}")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_each_asks_for_what_exists_and_says_what_to_do(alert: Alert) -> None:
    labels = meaning(alert.query, full_catalogue()).labels or frozenset()
    assert set(alert.annotations) == {"summary", "description", "runbook"}
    assert alert.labels["severity"] in ("warning", "critical")
    for text in alert.annotations.values():
        assert set(LABEL.findall(text)) <= labels
    assert alert.annotations["description"].endswith(".")
    assert len(alert.annotations["runbook"]) > 100
    assert not alert.annotations["summary"].endswith(".")


def test_exit_codes_are_those_of_the_server() -> None:
    """A runbook that names another sends the reader the wrong way."""
    from server.app.api_process import EXIT_ENGINE_GAVE_UP
    from server.cli import EXIT_REFUSED

    runbooks = " ".join(alert.annotations["runbook"] for alert in ALERTS)
    runbooks += " ".join(alert.annotations["description"] for alert in ALERTS)
    named = re.findall(r"\b(\d+): (?:the engine failed|it could not start)", runbooks)
    assert [int(code) for code in named] == [EXIT_ENGINE_GAVE_UP, EXIT_REFUSED]


def test_recorded_names_say_level_metric_and_operation() -> None:
    catalogue = full_catalogue()
    for name in RECORDED:
        assert re.fullmatch(r"instance:quire_[a-z_]+:[a-z0-9]+_rate5m", name)
        assert set(catalogue[name].labels) == {"job", "instance"}
        assert catalogue[name].quantity != NUMBER


def test_each_alarm_is_shown_to_fire_and_to_stay_quiet() -> None:
    names = {alert.name for alert in ALERTS}
    assert {case.alarm for case in FIRES} == names
    assert {case.alarm for case in QUIET} == names


def rendered(annotation: str, case: Fires) -> str:
    return LABEL.sub(lambda found: case.labels[found[1]], annotation)


def expected(case: Fires) -> dict[str, object]:
    (alert,) = (alert for alert in ALERTS if alert.name == case.alarm)
    annotations = {name: rendered(text, case) for name, text in alert.annotations.items()}
    return {
        "exp_labels": {**case.labels, **alert.labels},
        "exp_annotations": {**annotations, "description": case.description},
    }


def story(case: Fires | Quiet) -> dict[str, object]:
    """A test as promtool reads it."""
    if isinstance(case, Fires):
        interval, moments = case.interval, [(case.before, []), (case.at, [expected(case)])]
    else:
        interval, moments = "30s", [(moment, []) for moment in case.at]
    return {
        "interval": interval,
        "input_series": [
            {"series": series, "values": values} for series, values in case.series.items()
        ],
        "alert_rule_test": [
            {"eval_time": moment, "alertname": case.alarm, "exp_alerts": alarms}
            for moment, alarms in moments
        ],
    }


def test_promtool_sees_each_alarm_fire_with_its_figure_and_stay_quiet(tmp_path: Path) -> None:
    promtool = needed("promtool", "prometheus")
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "30s",
        "tests": [story(case) for case in (*FIRES, *QUIET)],
    }
    file = tmp_path / "alarms.yml"
    file.write_text(yaml.safe_dump(tests))
    run([promtool, "test", "rules", file])


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool = needed("promtool", "prometheus")
    output = run([promtool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml"])
    assert f"{len(ALERTS) + len(RECORDED)} rules found" in output
    run([promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES])

"""What the documents of deploy/ say is so."""

from __future__ import annotations

import re

import yaml

from deploy.grafana.generate import DASHBOARDS
from deploy.grafana.render import dashboard_json
from deploy.metrics_page import PAGE, page
from deploy.recorded import read_rules
from tests.deploy.deploy_tools import DEPLOY, ROOT

README = (DEPLOY / "README.md").read_text()
GRAFANA = DEPLOY / "grafana"
PROVISIONING = GRAFANA / "provisioning"


def test_the_page_of_metrics_is_that_of_the_registry() -> None:
    assert PAGE.read_text() == page(), "run python -m deploy.metrics_page"


def test_the_readme_has_every_alarm_once() -> None:
    named = re.findall(r"\bQuire[A-Z]\w+", README.split("## The alarms")[1].split("##")[0])
    assert sorted(named) == sorted(alert.name for alert in read_rules()[1])


def test_the_readme_counts_the_panels_that_need_the_rules() -> None:
    recorded = read_rules()[0]
    panels = {
        panel["title"]
        for dashboard in DASHBOARDS
        for panel in dashboard_json(dashboard)["panels"]
        for target in panel.get("targets", ())
        if any(name in target["expr"] for name in recorded)
    }
    assert len(panels) == 4
    assert "four panels of Serving" in README


def test_the_readme_names_the_schema_that_the_dashboards_are_held_to() -> None:
    package = (ROOT / "tests/deploy/grafana_schema/package.json").read_text()
    (version,) = re.findall(r'"@grafana/schema": "([^"]+)"', package)
    assert f"Grafana {version}" in README


def test_the_folders_are_mounted_where_they_are_provisioned() -> None:
    provider = yaml.safe_load((PROVISIONING / "dashboards" / "quire.yml").read_text())
    path = provider["providers"][0]["options"]["path"]
    text = (GRAFANA / "README.md").read_text()
    assert f"| `dashboards/` | three dashboards: Memory, Serving, Engine | `{path}` |" in text
    home = re.findall(r"HOME_DASHBOARD_PATH=(\S+)", text)
    assert home == [f"{path}/quire-memory.json"]


def test_grafana_knows_the_interval_at_which_prometheus_scrapes() -> None:
    source = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    interval = config["global"]["scrape_interval"]
    assert source["datasources"][0]["jsonData"]["timeInterval"] == interval
    assert source["datasources"][0]["type"] == "prometheus"

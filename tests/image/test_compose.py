"""docker-compose.yml, really brought up: Quire and a Prometheus that scrapes it.

Grafana's image is in no registry of packages: its part of the file is held to the specification by
test_manifests, its dashboards and their queries by tests/deploy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.server_process import free_port, http_get
from tests.image.container_engine import ContainerEngine
from tests.image.image_builds import PROMETHEUS, QUIRE, Images
from tests.image.manifests import COMPOSE
from tests.image.running import RunningQuire, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROJECT = "quire-check"


@dataclass(frozen=True, slots=True)
class Stack:
    quire: RunningQuire
    prometheus_url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers, one entry a series; empty while it is not up."""
        try:
            answer = http_get(
                f"{self.prometheus_url}/api/v1/query", params={"query": expression}, timeout=10
            )
        except httpx.TransportError:
            return []
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def value(self, expression: str) -> float | None:
        """Of the one series that answers, if there is one."""
        series = self.query(expression)
        return float(series[0]["value"][1]) if len(series) == 1 else None


@pytest.fixture(scope="module")
def stack(engine: ContainerEngine, images: Images) -> Iterator[Stack]:
    override = engine.folder / "override.yml"
    override.write_text(
        yaml.safe_dump(
            {"services": {"quire": {"image": QUIRE}, "prometheus": {"image": PROMETHEUS}}}
        )
    )
    ports = {name: free_port() for name in ("QUIRE_PUBLISH", "PROMETHEUS_PUBLISH")}
    variables = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    files: list[Path] = [COMPOSE, override]

    def compose(*arguments: str) -> str:
        return engine.compose(*arguments, files=files, project=PROJECT, variables=variables)

    quire = RunningQuire(engine, f"{PROJECT}_quire_1", ports["QUIRE_PUBLISH"])
    # Services by name: what the default profile starts, but for Grafana.
    compose("up", "--detach", "--no-build", "quire", "prometheus")
    try:
        quire.wait_ready()
        yield Stack(quire, f"http://127.0.0.1:{ports['PROMETHEUS_PUBLISH']}")
    finally:
        compose("down", "--volumes")


def test_the_default_profile_serves_the_demo_model(stack: Stack) -> None:
    assert stack.quire.get("/v1/models").json()["data"][0]["id"] == "quire-demo"
    assert stack.quire.complete(prompt="import ", max_tokens=8)["usage"]["completion_tokens"] >= 1


@pytest.mark.parametrize("service", ["quire", "prometheus"])
def test_services_run_confined(stack: Stack, service: str) -> None:
    name = f"{PROJECT}_{service}_1"
    form = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.SecurityOpt}} {{.HostConfig.Memory}}"
    read_only, options, memory = stack.quire.engine.podman(
        "inspect", "--format", form, name
    ).split()
    assert (read_only, options) == ("true", "[no-new-privileges]")
    assert int(memory) in (2 << 30, 512 << 20)
    status = stack.quire.engine.podman(
        "exec", name, "grep", "-E", "^(Uid|CapEff|CapBnd)", "/proc/1/status"
    )
    fields = {
        key: value.split() for key, value in (line.split(":") for line in status.splitlines())
    }
    assert fields["Uid"][0] != "0"
    assert int(fields["CapEff"][0], 16) == int(fields["CapBnd"][0], 16) == 0


def test_health_checks_pass(stack: Stack) -> None:
    prometheus = RunningQuire(stack.quire.engine, f"{PROJECT}_prometheus_1", 0)
    assert stack.quire.is_healthy()
    wait_until("Prometheus answers a query", prometheus.is_healthy, 60)


def test_prometheus_sees_quire(stack: Stack) -> None:
    wait_until("up", lambda: stack.value('up{job="quire"}') == 1, 60)
    (device,) = stack.quire.get("/memory").json()["devices"]
    assert device["total_bytes"] == 2 << 30
    wait_until("engine up", lambda: stack.value("quire_engine_up") == 1, 60)
    assert stack.value("quire_memory_total_bytes") == device["total_bytes"]
    assert stack.value('sum(quire_requests_total{route="/v1/completions"})') is not None
    rules = http_get(f"{stack.prometheus_url}/api/v1/rules", timeout=10).json()["data"]["groups"]
    assert rules and all(rule["health"] != "err" for group in rules for rule in group["rules"])

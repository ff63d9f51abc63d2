"""docker-compose.yml and the Kubernetes manifests: valid, confined, and in agreement with Quire."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from manifests import (
    CORE_GROUPS,
    KUBERNETES,
    ROOT,
    compose,
    compose_schema,
    documents,
    merged,
    objects,
)

import server
from server.config import resolve
from server.metrics.registry import METRICS

KUBERNETES_VERSIONS = ("1.30", "1.37")  # the oldest and the newest held to
QUIRE_SERVICES = ("quire", "quire-gpu")


def one(kind: str, name: str = "quire") -> dict[str, Any]:
    found = [d for _, d in objects() if d["kind"] == kind and d["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def gpu_deployment() -> dict[str, Any]:
    patch = yaml.safe_load((KUBERNETES / "gpu" / "deployment.yaml").read_text())
    whole: dict[str, Any] = merged(one("Deployment"), patch)
    return whole


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


DEPLOYMENTS = {"base": lambda: one("Deployment"), "gpu": gpu_deployment}


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_core_objects_fit_the_schemas_of_kubernetes(version: str) -> None:
    checked = 0
    core = [d for _, d in objects() if d["apiVersion"] in CORE_GROUPS]
    for document in [*core, gpu_deployment()]:
        kubernetes_validate.validate(document, version, strict=True)
        checked += 1
    assert checked >= 6


def test_every_object_is_checked_or_named_as_not_checked() -> None:
    readme = (KUBERNETES / "README.md").read_text()
    for file, document in objects():
        if document["apiVersion"] not in CORE_GROUPS:
            assert document["apiVersion"] in readme, f"{file}: {document['apiVersion']}"


def test_kustomizations_name_files_that_are_there() -> None:
    for file, document in documents():
        if document["kind"] == "Kustomization":
            paths = [
                *document.get("resources", ()),
                *(p["path"] for p in document.get("patches", ())),
            ]
            for path in paths:
                assert (file.parent / path).exists(), f"{file}: {path}"


def test_compose_fits_its_specification() -> None:
    schema = compose_schema()
    jsonschema.validators.validator_for(schema)(schema).validate(compose())


def test_compose_starts_the_cpu_variant_unless_another_profile_is_asked_for() -> None:
    services = compose()["services"]
    assert services["quire"]["profiles"] == ["cpu"]
    assert services["quire-gpu"]["profiles"] == ["gpu"]
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text().splitlines()
    # whichever runs is called quire on the network: that is whom Prometheus asks
    assert services["quire-gpu"]["networks"]["default"]["aliases"] == ["quire"]
    targets = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert targets["scrape_configs"][0]["static_configs"] == [{"targets": ["quire:8000"]}]


@pytest.mark.parametrize("name", ["quire", "quire-gpu", "prometheus", "grafana"])
def test_compose_services_are_confined(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service and service.get("user") not in ("root", "0")
    assert set(service["deploy"]["resources"]["limits"]) >= {"memory", "pids"}
    assert service["healthcheck"]["test"][0] == "CMD"
    image, _, tag = service["image"].partition(":")
    assert image and re.fullmatch(r"v?\d+\.\d+\.\d+(-\w+)?", tag), service["image"]
    for port in service["ports"]:
        assert re.fullmatch(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+", port), port
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert not source.startswith("./") or (ROOT / source).exists(), volume


def test_compose_has_nobody_sign_in_to_grafana_and_nothing_fetched_by_it() -> None:
    environment = compose()["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
    home = Path(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / "deploy" / "grafana" / "dashboards" / home.name).is_file()


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


@pytest.mark.parametrize("name", QUIRE_SERVICES)
def test_compose_gives_quire_its_options_and_time_to_drain(name: str) -> None:
    service = compose()["services"][name]
    options = {k: re.sub(r"\$\{\w+:-(.*)\}", r"\1", v) for k, v in service["environment"].items()}
    config = resolve({}, options)  # an unknown variable would be refused
    assert seconds(service["stop_grace_period"]) >= config.drain_timeout + 10
    assert service["image"].startswith(f"quire:{server.__version__}-")


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deployment_is_confined(name: str) -> None:
    pod = DEPLOYMENTS[name]()["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == uid_of_the_image()
    assert pod["automountServiceAccountToken"] is False
    own = container(DEPLOYMENTS[name]())["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}


def uid_of_the_image() -> int:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    (uid,) = re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE)
    return int(uid)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deployment_gives_quire_its_options_and_time_to_drain(name: str) -> None:
    pod = DEPLOYMENTS[name]()["spec"]["template"]["spec"]
    # a service called quire would add QUIRE_PORT=tcp://..., which Quire refuses
    assert pod["enableServiceLinks"] is False
    quire = container(DEPLOYMENTS[name]())
    config = resolve({}, {item["name"]: item["value"] for item in quire["env"]})
    _, pre_stop = quire["lifecycle"]["preStop"]["exec"]["command"]
    grace = pod["terminationGracePeriodSeconds"]
    assert grace >= int(pre_stop) + config.drain_timeout + 10
    assert quire["resources"]["requests"]["memory"] == quire["resources"]["limits"]["memory"]
    assert quire["image"].startswith(f"quire:{server.__version__}-")


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_probes_ask_the_routes_that_there_are(name: str) -> None:
    quire = container(DEPLOYMENTS[name]())
    ports = {port["name"]: port["containerPort"] for port in quire["ports"]}
    for probe, path in (("startup", "/health"), ("liveness", "/health"), ("readiness", "/ready")):
        asked = quire[f"{probe}Probe"]["httpGet"]
        assert (asked["path"], ports[asked["port"]]) == (path, 8000)
        patience = quire[f"{probe}Probe"].get("timeoutSeconds", 1)
        assert 2 <= patience <= quire[f"{probe}Probe"]["periodSeconds"], probe


def test_a_liveness_probe_leaves_a_stalled_engine_to_its_supervisor() -> None:
    from server.ipc.supervisor import RestartPolicy

    probe = container(one("Deployment"))["livenessProbe"]
    policy = RestartPolicy()
    assert policy.doubt_s + probe["periodSeconds"] * probe["failureThreshold"] > policy.stall_s + 30


def test_selectors_meet_the_pods() -> None:
    labels = one("Deployment")["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "PodDisruptionBudget", "PodMonitor", "InferencePool", "Deployment"):
        selector = one(kind)["spec"]["selector"]
        assert (selector.get("matchLabels") or selector).items() <= labels.items(), kind


def test_manifests_ask_for_metrics_that_there_are() -> None:
    known = {metric.name for metric in METRICS}
    asked = set()
    for file in KUBERNETES.rglob("*.yaml"):
        asked |= set(re.findall(r"\bquire_[a-z_]+", file.read_text()))
    assert {"quire_requests_waiting", "quire_kv_cache_usage_ratio"} <= asked
    assert asked <= known


def test_the_endpoint_picker_reads_gauges() -> None:
    config = yaml.safe_load(one("ConfigMap", "quire-endpoint-picker")["data"]["quire.yaml"])
    plugins = {plugin["type"]: plugin.get("parameters", {}) for plugin in config["plugins"]}
    (engine,) = plugins["core-metrics-extractor"]["engineConfigs"]
    assert engine["name"] == plugins["core-metrics-extractor"]["defaultEngine"]
    types = {metric.name: metric.type for metric in METRICS}
    for key in ("queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec"):
        assert types[engine[key]] == "gauge"
    for profile in config["schedulingProfiles"]:
        assert {plugin["pluginRef"] for plugin in profile["plugins"]} <= set(plugins)

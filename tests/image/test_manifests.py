"""docker-compose.yml and the Kubernetes manifests: valid, confined, and in agreement with Quire."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

import server
from deploy import cluster
from deploy.grafana.generate import rendered
from server.config.server_config import resolve
from server.metrics.registry import METRICS
from tests.image.manifests import (
    CORE_GROUPS,
    KUBERNETES,
    ROOT,
    compose,
    compose_schema,
    documents,
    merged,
    objects,
)

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
    assert checked >= 12


def test_every_object_is_checked_or_named_as_not_checked() -> None:
    readme = (KUBERNETES / "README.md").read_text()
    for file, document in objects():
        if document["apiVersion"] not in CORE_GROUPS:
            assert document["apiVersion"] in readme, f"{file}: {document['apiVersion']}"


def test_kustomizations_name_files_that_are_there() -> None:
    named = [
        (file, path)
        for file, document in documents()
        if document["kind"] == "Kustomization"
        for path in [
            *document.get("resources", ()),
            *(p["path"] for p in document.get("patches", ())),
        ]
    ]
    assert len(named) > 5
    for file, path in named:
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
    for own in (*pod["containers"], *pod.get("initContainers", ())):
        assert_confined(own)


def assert_confined(container: dict[str, Any]) -> None:
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "memory" in container["resources"]["limits"]


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
    from server.client.supervisor import RestartPolicy

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
    by_hand = [f for f in KUBERNETES.rglob("*.yaml") if f.name not in cluster.manifests()]
    for file in by_hand:
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


def test_rules_and_dashboards_in_a_cluster_are_those_of_the_files() -> None:
    assert list(cluster.check()) == []
    rules = one("PrometheusRule")
    assert rules["spec"] == yaml.safe_load(cluster.RULES.read_text())
    assert len(rules["spec"]["groups"]) >= 3
    for name, text in rendered().items():
        config = one("ConfigMap", f"{name.removesuffix('.json')}-dashboard")
        assert config["data"] == {name: text} and json.loads(text)["panels"]
        assert config["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_a_copy_edited_by_hand_is_found(tmp_path: Path) -> None:
    cluster.write(tmp_path)
    assert list(cluster.check(tmp_path)) == []
    rule = tmp_path / "prometheus-rule.yaml"
    rule.write_text(rule.read_text().replace("for: 1m", "for: 9m", 1))
    (tmp_path / "dashboards.yaml").unlink()
    assert [fault.split(":")[0] for fault in cluster.check(tmp_path)] == [
        "prometheus-rule.yaml",
        "dashboards.yaml",
    ]


def test_the_network_policy_lets_in_requests_and_nothing_out() -> None:
    policy = one("NetworkPolicy")["spec"]
    assert policy["podSelector"] == one("Deployment")["spec"]["selector"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"} and policy["egress"] == []
    (rule,) = policy["ingress"]
    ports = {port["name"] for port in container(one("Deployment"))["ports"]}
    assert {port["port"] for port in rule["ports"]} == ports == {"http"}


def test_the_job_fills_the_claim_that_the_gpu_variant_waits_for() -> None:
    job = one("Job", "quire-model-fill")["spec"]["template"]
    claim = one("PersistentVolumeClaim", "quire-model")["metadata"]["name"]
    pod = gpu_deployment()["spec"]["template"]["spec"]
    for spec in (pod, job["spec"]):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["model"]["persistentVolumeClaim"]["claimName"] == claim
    (fill,) = job["spec"]["containers"]
    (waits,) = pod["initContainers"]
    assert "test -f /model/.filled" in waits["args"][0] and "> /model/.filled" in fill["args"][0]
    assert_confined(fill)
    assert job["spec"]["securityContext"] == pod["securityContext"]
    # The policy that lets nothing out must not be its own.
    selected = one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert not selected.items() <= job["metadata"]["labels"].items()


HUB = """\
#!/bin/sh
test "$FAILS" = yes && exit 1
touch "$CLAIM/config.json" "$CLAIM/tokenizer.json" "$CLAIM/model.safetensors"
echo "$@" > "$CLAIM/asked"
"""


def test_the_claim_is_marked_as_filled_when_it_is_and_not_before(tmp_path: Path) -> None:
    """The job's own script, with a hub that answers from here."""
    (fill,) = one("Job", "quire-model-fill")["spec"]["template"]["spec"]["containers"]
    claim, hub = tmp_path / "claim", tmp_path / "hub"
    (hub / "bin").mkdir(parents=True)
    claim.mkdir()
    for name, text in (("python", "#!/bin/sh\n"), ("pip", "#!/bin/sh\n"), ("hf", HUB)):
        (hub / "bin" / name).write_text(text)
        (hub / "bin" / name).chmod(0o755)
    script = fill["args"][0].replace("/model", str(claim)).replace("/tmp/hub", str(hub))

    def run(model: str, fails: str = "no") -> tuple[int, str]:
        variables = {"MODEL": model, "REVISION": "main", "CLAIM": str(claim), "FAILS": fails}
        path = f"{hub / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            [*fill["command"], script],
            env={**variables, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    marker = claim / ".filled"
    assert run("org/one", fails="yes")[0] == 1 and not marker.exists()
    assert run("org/one") == (0, "filled with org/one@main\n")
    asked = (claim / "asked").read_text()
    assert asked.startswith(f"download org/one --revision main --local-dir {claim} ")
    assert ".bin" not in asked and ".pt" not in asked
    (claim / "asked").unlink()
    assert run("org/one") == (0, "the claim holds org/one@main already\n")
    code, words = run("org/two")
    assert code == 1 and "holds org/one@main, not org/two@main" in words
    assert not (claim / "asked").exists() and marker.read_text() == "org/one@main\n"

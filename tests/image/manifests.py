"""What deploy/ holds, read as data, and the published schemas to hold it to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
COMPOSE = ROOT / "docker-compose.yml"

# The kinds of Kubernetes itself. The others are custom resources, whose schemas no Python package
# carries: deploy/kubernetes/README.md says what they were checked against, and when.
CORE_GROUPS = {"v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "policy/v1", "autoscaling/v2"}


@cache
def documents() -> tuple[tuple[Path, dict[str, Any]], ...]:
    """Every YAML document below KUBERNETES with its file: read once, and changed by nobody."""
    return tuple(
        (file, document)
        for file in sorted(KUBERNETES.rglob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    )


def objects() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Whole objects: neither a kustomization nor a patch of one."""
    patches = {
        file.parent / patch["path"]
        for file, document in documents()
        if document["kind"] == "Kustomization"
        for patch in document.get("patches", ())
    }
    for file, document in documents():
        if document["kind"] != "Kustomization" and file not in patches:
            yield file, document


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge as kustomize does it for the lists used here: by name, mountPath or key."""
    if isinstance(base, dict) and isinstance(patch, dict):
        out = dict(base)
        for key, value in patch.items():
            out[key] = merged(base[key], value) if key in base else value
        return out
    if isinstance(base, list) and isinstance(patch, list):
        return _merged_lists(base, patch)
    return patch


def _merged_lists(base: list[Any], patch: list[Any]) -> list[Any]:
    def identity(item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        return item.get("mountPath") or item.get("name") or item.get("key")

    by_identity = {identity(item): item for item in base}
    for item in patch:
        known = by_identity.get(identity(item))
        by_identity[identity(item)] = item if known is None else merged(known, item)
    return list(by_identity.values())


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return document


def compose_schema() -> dict[str, Any]:
    """The Compose specification's own schema, as check-jsonschema carries it."""
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema: dict[str, Any] = json.loads((folder / "compose-spec.json").read_text(encoding="utf-8"))
    return schema

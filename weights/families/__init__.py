"""The families that are served, found by a config.json's architecture.

Each is a module of this package that has a FAMILY: a new one needs no other line of code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from weights.config.facts import CONFIG_FILE
from weights.config.family import Family
from weights.config.text_part import text_family
from weights.config.unserved import reason_not_served
from weights.errors import CheckpointError


def _found() -> Iterator[Family]:
    for module in iter_modules(__path__):
        family = getattr(import_module(f"{__name__}.{module.name}"), "FAMILY", None)
        if isinstance(family, Family):
            yield family


FAMILIES = tuple(_found())


def resolve(config: Mapping[str, Any]) -> Family:
    """The family of ``config``. Raises CheckpointError naming an architecture, a quantisation
    method or custom code that is not served, and what is."""
    _refuse_unserved_kinds(config)
    text = text_family(config, FAMILIES)
    if text is not None:
        return text
    architectures, model_type = config.get("architectures"), config.get("model_type")
    _refuse_known_kinds(config, architectures)
    if architectures is None:
        return _find("model_type", model_type, {family.model_type: family for family in FAMILIES})
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise CheckpointError(f"{CONFIG_FILE}: architectures must be a list of one name")
    by_architecture = {name: family for family in FAMILIES for name in family.architectures}
    family = _find("architectures", architectures[0], by_architecture)
    if model_type not in (None, family.model_type):
        raise CheckpointError(
            f'{CONFIG_FILE}: model_type "{str(model_type)[:80]}" contradicts architecture '
            f"{family.architecture}, whose model_type is {family.model_type}"
        )
    return family


def by_name(name: str) -> Family:
    """The family that a ModelSpec names. Raises ValueError where there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ValueError(f"unknown family {name!r}")


def _find(key: str, value: object, table: Mapping[str, Family]) -> Family:
    if isinstance(value, str) and value in table:
        return table[value]
    given = "is missing" if value is None else f'"{str(value)[:80]}" is not served'
    near = difflib.get_close_matches(str(value), table, n=1, cutoff=0.9)
    hint = f"; did you mean {near[0]}?" if near else ""
    served = ", ".join(family.name for family in FAMILIES)
    raise CheckpointError(f"{CONFIG_FILE}: {key} {given}{hint}; served families: {served}")


def _refuse_known_kinds(config: Mapping[str, Any], architectures: object) -> None:
    names = architectures if isinstance(architectures, list) else []
    for name in names or [None]:
        reason = reason_not_served(config, name)
        if reason is not None:
            called = config.get("model_type") if name is None else name
            raise CheckpointError(f"{CONFIG_FILE}: {str(called)[:80]} is not served: {reason}")


def _is_known_code(config: Mapping[str, Any]) -> bool:
    """Whether the code that a folder brings for its architecture is what a family computes."""
    classes, architectures = config["auto_map"], config.get("architectures")
    name = classes.get("AutoModelForCausalLM") if isinstance(classes, dict) else None
    if not isinstance(name, str) or not isinstance(architectures, list):
        return False
    local = name.rpartition("--")[2]  # behind the repository that it is taken from
    known = any(local in family.own_code for family in FAMILIES)
    return known and architectures == [local.rpartition(".")[2]]


def _refuse_unserved_kinds(config: Mapping[str, Any]) -> None:
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CheckpointError(
            f"{CONFIG_FILE}: quantization_config: weights quantised by "
            f'"{str(method or "an unnamed method")[:80]}" are not served; '
            "use the unquantised checkpoint"
        )
    if config.get("auto_map") and not _is_known_code(config):
        raise CheckpointError(
            f"{CONFIG_FILE}: auto_map: the model is custom code of its folder, which is never run"
        )
    if config.get("is_encoder_decoder"):
        raise CheckpointError(f"{CONFIG_FILE}: is_encoder_decoder: only decoders are served")

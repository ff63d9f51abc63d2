"""The families that are served, found by a config.json's architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights.errors import CheckpointError
from weights.families import gpt2, llama
from weights.families.base import Family
from weights.families.facts import CONFIG_FILE

FAMILIES = (llama.FAMILY, gpt2.FAMILY)


def resolve(config: Mapping[str, Any]) -> Family:
    """The family of ``config``. Raises CheckpointError naming an architecture, a quantisation
    method or custom code that is not served, and what is."""
    _refuse_unserved_kinds(config)
    architectures, model_type = config.get("architectures"), config.get("model_type")
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
    raise CheckpointError(f"{CONFIG_FILE}: {key} {given}; served: {', '.join(table)}")


def _refuse_unserved_kinds(config: Mapping[str, Any]) -> None:
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CheckpointError(
            f"{CONFIG_FILE}: quantization_config: weights quantised by "
            f'"{str(method or "an unnamed method")[:80]}" are not served; '
            "use the unquantised checkpoint"
        )
    if config.get("auto_map"):
        raise CheckpointError(
            f"{CONFIG_FILE}: auto_map: the model is custom code of its folder, which is never run"
        )
    if config.get("is_encoder_decoder"):
        raise CheckpointError(f"{CONFIG_FILE}: is_encoder_decoder: only decoders are served")

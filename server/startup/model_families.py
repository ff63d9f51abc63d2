"""What `quire models` lists: the families that are served and what of each, from the registry.

The facts come from each family's own reader, asked for a smallest config.json: what its defaults
are, and which keys it reads. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from server.memory.backends.record import Backend
from server.memory.backends.registry import backends
from server.startup.supported_models import unserved_by, unserved_features
from weights.config.family import Family
from weights.config.rope import KINDS
from weights.families import FAMILIES
from weights.spec import ModelSpec, NormPlacement, ParallelBlock, PositionKind, QkNorm, RopeScaling

ENDPOINTS = ("/v1/completions", "/v1/chat/completions")  # a chat needs a template


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """One row. ``quantization`` says what --quantization may name, device by device."""

    family: str
    architectures: tuple[str, ...]
    model_type: str
    attention: tuple[str, ...]
    positions: tuple[str, ...]
    block: tuple[str, ...]
    experts: bool
    endpoints: tuple[str, ...]
    devices: tuple[str, ...]
    quantization: dict[str, tuple[str, ...]]


def model_families() -> tuple[ModelFamily, ...]:
    return tuple(map(_describe, FAMILIES))


def as_json() -> str:
    return json.dumps([asdict(family) for family in model_families()], indent=2)


def table() -> list[tuple[str, ...]]:
    """A row a family, below a row of headings."""
    return [("family", "architecture", "attention", "positions", "block"), *map(_cells, FAMILIES)]


def as_text() -> str:
    """The table, and what holds for all families."""
    rows = table()
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    elsewhere = [
        f"{'not on ' + device:<12}  {', '.join(names)}"
        for device, names in _not_served_on(model_families()).items()
    ]
    lines = [
        "  ".join((*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[4]))
        for row in rows
    ]
    held = {name: formats for name, formats in _quantization(backends()).items() if formats}
    quantized = "; ".join(f"{name}: {', '.join(formats)}" for name, formats in held.items())
    return "\n".join(
        (
            *lines,
            "",
            f"endpoints     {' '.join(ENDPOINTS)} (a chat needs a chat template)",
            f"devices       {', '.join(_devices(backends()))}",
            *elsewhere,
            f"quantization  at load, {quantized}",
            "rotary positions may be scaled: " + ", ".join(_scalings()),
        )
    )


def _cells(family: Family) -> tuple[str, ...]:
    row = _describe(family)
    return (
        row.family,
        family.architecture,
        ", ".join(row.attention),
        ", ".join(row.positions),
        ", ".join(row.block),
    )


def _describe(family: Family) -> ModelFamily:
    spec, keys = family.spec(family.sizes), family.keys()
    able = [backend for backend in backends() if _can_run(spec, backend)]
    return ModelFamily(
        family=family.name,
        architectures=family.architectures,
        model_type=family.model_type,
        attention=_attention(spec, keys),
        positions=_positions(spec, keys),
        block=_block(spec),
        experts=spec.experts is not None,
        endpoints=ENDPOINTS,
        devices=_devices(able),
        quantization=_quantization(able),
    )


def _not_served_on(families: Iterable[ModelFamily]) -> dict[str, list[str]]:
    """By device the families that it does not compute."""
    found: dict[str, list[str]] = {}
    for family in families:
        for device in _devices(backends()):
            if device not in family.devices:
                found.setdefault(device, []).append(family.family)
    return found


def _can_run(spec: ModelSpec, backend: Backend) -> bool:
    return not unserved_features(spec) and unserved_by(backend, spec) is None


def _devices(able: Iterable[Backend]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(backend.device for backend in able))


def _quantization(able: Iterable[Backend]) -> dict[str, tuple[str, ...]]:
    """By device; several backends of one device may each have formats of their own."""
    held: dict[str, tuple[str, ...]] = {}
    for backend in able:
        formats = (*held.get(backend.device, ()), *backend.quantisations)
        held[backend.device] = tuple(dict.fromkeys(formats))
    return held


def _attention(spec: ModelSpec, keys: frozenset[str]) -> tuple[str, ...]:
    grouped = {"num_key_value_heads", "num_kv_heads"} & keys
    heads = "grouped heads" if grouped else "multi-head"
    found = {
        "windows": "sliding_window" in keys,
        "heads of two sizes": spec.local_attention is not None,
        "shared keys": "num_kv_shared_layers" in keys,
        "q/k norms": spec.attention.qk_norm is not QkNorm.NONE,
        "soft caps": spec.attention.soft_cap is not None,
    }
    return (heads, *(name for name, there in found.items() if there))


def _positions(spec: ModelSpec, keys: frozenset[str]) -> tuple[str, ...]:
    if spec.position is not PositionKind.ROTARY:
        return (spec.position.value,)
    found = {
        "part of a head": "partial_rotary_factor" in keys
        and spec.rope.dim < spec.attention.head_dim,
        "neighbouring pairs": spec.rope.interleaved,
        "not in every layer": bool(spec.rotary_layers),
        "two thetas": spec.local_rope is not None,
        "or alibi": "alibi" in keys,
        "in some pairs": spec.rope.scaling is RopeScaling.PROPORTIONAL,
    }
    return ("rotary", *(name for name, there in found.items() if there))


def _block(spec: ModelSpec) -> tuple[str, ...]:
    placed = {
        NormPlacement.PRE: "of inputs",
        NormPlacement.POST: "of sums",
        NormPlacement.BOTH: "of inputs and outputs",
        NormPlacement.OUTPUT: "of outputs",
    }
    activation = spec.mlp.activation.value
    mlp = f"{activation} gate" if spec.mlp.gated else activation
    parallel = () if spec.parallel is ParallelBlock.NONE else ("parallel",)
    return (f"{spec.norm.kind} norms {placed[spec.norm.placement]}", mlp, *parallel)


def _scalings() -> tuple[str, ...]:
    return tuple(dict.fromkeys(kind.value for name, kind in KINDS.items() if name != "default"))

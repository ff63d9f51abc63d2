"""``quire plan`` of every family, from a folder that holds a config.json and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.plan_cli.answer import answer
from server.plan_cli.capacity import bytes_per_token
from server.plan_cli.make import Plan
from tests.plan.plans import plan
from tests.plan.published_configs import PUBLISHED_CONFIGS
from weights.config.family import Family
from weights.families import FAMILIES
from weights.inventory import Parameter, num_parameters, tally
from weights.presets import find_preset
from weights.spec import ModelSpec


def planned(config: Mapping[str, Any], folder: Path) -> Plan:
    (folder / "config.json").write_text(json.dumps(config))
    return plan(folder)


def shapes(spec: ModelSpec) -> Counter[Parameter]:
    """Parameters but for how a checkpoint stores them, which a preset does not say."""
    found: Counter[Parameter] = Counter()
    for parameter, times in tally(spec).items():
        found[replace(parameter, unit_offset=False)] += times
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_config_alone_is_planned(family: Family, tmp_path: Path) -> None:
    """A smallest one: it fits, it could be served, and the figures are of the family's spec."""
    named = {"architectures": [family.architecture], "model_type": family.model_type}
    made = planned({**named, **family.sizes}, tmp_path)
    spec = family.spec({**named, **family.sizes})
    assert made.model.spec == spec and made.fits
    told = answer(made)
    assert told["everything"]["parameters"] == num_parameters(spec)
    heads = map(spec.layer_attention, range(spec.num_layers))
    kept = sum(2 * 2 * one.num_kv_heads * one.head_dim for one in heads)
    assert told["capacity"]["kv_bytes_per_token"] == kept  # K and V of 2 bytes
    first, *of_the_device = told["notes"]
    assert "no .safetensors file in the folder" in first
    unlike = spec.local_attention is not None  # planned for a GPU, which does not compute these
    assert ["heads of two sizes" in note for note in of_the_device] == [True] * unlike


@pytest.mark.parametrize("name", PUBLISHED_CONFIGS)
def test_a_published_config_is_its_preset(name: str, tmp_path: Path) -> None:
    read = planned(PUBLISHED_CONFIGS[name], tmp_path)
    spec, preset = read.model.spec, find_preset(name).spec
    assert shapes(spec) == shapes(preset)
    assert spec.windows == preset.windows
    assert (spec.family, spec.max_positions) == (preset.family, preset.max_positions)
    assert (spec.rope.theta, spec.rope.dim) == (preset.rope.theta, preset.rope.dim)
    assert bytes_per_token(read) == bytes_per_token(plan(name))

"""A spec may say more than the engine computes: that is refused, whatever it is."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import server.startup.model_info as model_facts
from server.config.server_config import resolve
from server.errors import StartupError
from server.startup.supported_models import unserved_features
from weights import families
from weights.presets import read_presets
from weights.spec import (
    AttentionSpec,
    ExpertsSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormPlacement,
    NormSpec,
    ParallelBlock,
    QkNorm,
    RopeSpec,
)
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

LAYER = NormSpec(NormKind.LAYER, 1e-5)
# What a decoder of pre-normalised blocks reads of a spec.
COMPUTED = {
    ModelSpec: "family architecture vocab_size hidden_size num_layers attention mlp norm position "
    "max_positions tied_unembedding parameter_dtype rope bos_token_id eos_token_ids",
    AttentionSpec: "num_query_heads num_kv_heads head_dim scale qkv_bias output_bias",
    MlpSpec: "intermediate_size activation gated bias",
    NormSpec: "kind epsilon",
}
NOT_COMPUTED: dict[type, dict[str, Any]] = {
    ModelSpec: {
        "parallel": ParallelBlock.SHARED_NORM,
        "experts": ExpertsSpec(4, 2, 32),
        "windows": (8, 0, 8),
        "local_rope": RopeSpec(dim=16),
        "position_offset": 2,
        "embedding_scale": 8.0,
        "logit_soft_cap": 30.0,
        "unembedding_bias": True,
    },
    AttentionSpec: {"qk_norm": QkNorm.HEAD, "soft_cap": 50.0},
    MlpSpec: {},
    NormSpec: {"placement": NormPlacement.BOTH, "bias": False},
}


def with_field(part: type, name: str, value: Any) -> ModelSpec:
    spec = tiny_llama()
    if part is ModelSpec:
        return replace(spec, **{name: value})
    if part is NormSpec:
        return replace(spec, norm=replace(LAYER, **{name: value}))
    return replace(spec, attention=replace(spec.attention, **{name: value}))


@pytest.mark.parametrize("part", COMPUTED)
def test_every_field_of_a_spec_is_computed_or_refused(part: type) -> None:
    """A field that is new stands in neither list: decide before it is read from a checkpoint."""
    known = set(COMPUTED[part].split()) | set(NOT_COMPUTED[part])
    assert {field.name for field in fields(part)} == known


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part, names in NOT_COMPUTED.items() for name in names]
)
def test_what_is_not_computed_has_a_name(part: type, name: str) -> None:
    assert len(unserved_features(with_field(part, name, NOT_COMPUTED[part][name]))) == 1


def test_what_the_served_families_need_is_computed() -> None:
    assert unserved_features(tiny_llama()) == unserved_features(tiny_gpt2()) == ()
    served = {name for name, p in read_presets().items() if not unserved_features(p.spec)}
    assert {"gpt-3", "gpt-2-xl", "llama-3.1-8b", "qwen2.5-7b"} <= served
    assert not served & {"gpt-1", "phi-2", "mixtral-8x7b", "gemma-2b", "qwen3-8b", "palm-540b"}


def test_a_start_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1)

    def windowed(config: dict[str, Any]) -> families.Family:
        family = families.resolve(config)
        return replace(family, read=lambda facts: replace(family.read(facts), windows=(64, 0, 64)))

    monkeypatch.setattr(model_facts, "resolve", windowed)
    with pytest.raises(StartupError, match="not served yet: sliding windows; quire plan"):
        model_facts.read_model(resolve({"model-dir": str(tmp_path), "device": "cpu"}, {}))

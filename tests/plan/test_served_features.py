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
    LatentSpec,
    LayerInputSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    QkNorm,
)
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

# What the decoder reads of a spec.
COMPUTED = {
    ModelSpec: "family architecture vocab_size hidden_size num_layers attention mlp norm position "
    "max_positions tied_unembedding parameter_dtype rope windows local_rope rotary_layers "
    "position_offset unembedding_bias bos_token_id eos_token_ids parallel embedding_scale "
    "rounded_embedding_scale alibi embedding_norm "
    "residual_scale logit_scale logit_soft_cap embedding_size local_attention stream_scale "
    "num_kv_shared_layers shared_intermediate_size",
    AttentionSpec: "num_query_heads num_kv_heads head_dim scale qkv_bias output_bias soft_cap "
    "qk_norm_bias qkv_clip query_scale value_norm own_kv",
    MlpSpec: "intermediate_size activation gated bias",
    NormSpec: "kind epsilon bias placement unit_offset",
}
NOT_COMPUTED: dict[type, dict[str, Any]] = {
    ModelSpec: {
        "experts": ExpertsSpec(4, 2, 32),
        "layer_input": LayerInputSpec(8, 512),  # without a scale of the stream
    },
    AttentionSpec: {
        "sinks": True,
        "latent": LatentSpec(32, 8, 16),
        "qk_norm": QkNorm.EACH_HEAD,
        "qk_norm_after_rotary": True,
        "values_are_keys": True,  # without a norm of them
    },
    MlpSpec: {},
    NormSpec: {"weight": False},
}


def with_field(part: type, name: str, value: Any) -> ModelSpec:
    spec = tiny_llama()
    if part is ModelSpec:
        return replace(spec, **{name: value})
    if part is NormSpec:
        return replace(spec, norm=replace(spec.norm, **{name: value}))
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
    assert {"gpt-1", "gpt-3", "llama-3.1-8b", "qwen2.5-7b", "qwen3-8b", "gemma-2b"} <= served
    assert not served & {"mixtral-8x7b", "qwen3-30b-a3b"}


def test_a_start_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1)

    def mixture(config: dict[str, Any]) -> families.Family:
        family = families.resolve(config)
        return replace(
            family, read=lambda facts: replace(family.read(facts), experts=ExpertsSpec(4, 2, 32))
        )

    monkeypatch.setattr(model_facts, "resolve", mixture)
    with pytest.raises(StartupError, match="not served yet: experts; quire plan"):
        model_facts.read_model(resolve({"model-dir": str(tmp_path), "device": "cpu"}, {}))

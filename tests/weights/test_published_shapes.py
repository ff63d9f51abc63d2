"""The presets against published figures, and against transformers' models of the same shape."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.weights.published import (
    ACTIVE,
    CLASSES,
    PARAMETERS,
    ROUNDED,
    transformers_config,
)
from weights.census import Count, census
from weights.inventory import (
    Component,
    Parameter,
    inventory,
    num_active_parameters,
    num_parameters,
    tally,
)
from weights.presets import find_preset, read_presets
from weights.spec import ModelSpec

PRESETS = read_presets()
# The others fuse query, key and value, or stack the experts.
ONE_TENSOR_A_MATRIX = (
    *("llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi"),
    *("olmo", "olmo2", "olmo3", "starcoder2", "smollm3", "granite", "cohere2", "seed_oss"),
    *("gptj", "gpt_neo", "opt", "exaone4", "stablelm", "gemma4"),
)
UNEVEN = "gpt-3-13b"  # 40 heads of 128 beside a width of 5140: as published, and no config class's


def spec(name: str) -> ModelSpec:
    return find_preset(name).spec


def nameless(parameters: tuple[Parameter, ...]) -> Counter[Parameter]:
    return Counter(replace(parameter, name="") for parameter in parameters)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_of_a_published_model_is_counted(name: str) -> None:
    assert num_parameters(spec(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", ACTIVE)
def test_a_token_passes_as_many_parameters_as_published(name: str) -> None:
    published, error, with_embedding = ACTIVE[name]
    mixture = spec(name)
    passed = num_active_parameters(mixture)
    if not with_embedding:
        passed -= mixture.vocab_size * mixture.hidden_size
    assert passed == pytest.approx(published, rel=error)


def test_every_preset_has_a_published_figure() -> None:
    assert {*PARAMETERS, *ROUNDED} == set(PRESETS)
    assert set(ACTIVE) == {name for name in PRESETS if spec(name).experts is not None}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_figures_are_met(name: str) -> None:
    published, error = ROUNDED[name]
    assert num_parameters(spec(name)) == pytest.approx(published, rel=error)


def test_the_preset_of_gpt3_has_the_published_census() -> None:
    counts = census(spec("gpt-3"))
    matrices = {str(name): count for name, count in counts.components.items() if count.matrices}
    assert matrices == {
        "embedding": Count(1, 617_558_016),
        "key": Count(9_216, 14_495_514_624),
        "query": Count(9_216, 14_495_514_624),
        "value": Count(9_216, 14_495_514_624),
        "output": Count(96, 14_495_514_624),
        "up": Count(96, 57_982_058_496),
        "down": Count(96, 57_982_058_496),
        "unembedding": Count(1, 617_558_016),
    }
    assert (counts.matrices, counts.matrix_parameters) == (27_938, 175_181_291_520)


def test_16_bits_hold_70_b_in_140_gb_and_7_b_in_14() -> None:
    for name, gigabytes, error in (
        ("llama-2-70b", 140, 0.02),
        ("llama-3.1-70b", 140, 0.02),
        ("llama-1-7b", 14, 0.05),
        ("llama-2-7b", 14, 0.05),
    ):
        nbytes = sum(parameter.num_bytes("f16") for parameter in inventory(spec(name)))
        assert nbytes == pytest.approx(gigabytes * 1e9, rel=error), name


@pytest.mark.parametrize(
    "name", [name for name, preset in PRESETS.items() if num_parameters(preset.spec) < 2e11]
)
def test_the_tally_is_the_inventory_without_names(name: str) -> None:
    assert dict(tally(spec(name))) == dict(nameless(inventory(spec(name))))


def test_every_expert_has_matrices_of_its_own_and_the_router_is_a_component() -> None:
    counts = census(spec("mixtral-8x7b")).components
    assert counts[Component.UP] == Count(32 * 8, 32 * 8 * 14336 * 4096)
    assert counts[Component.ROUTER] == Count(32, 32 * 8 * 4096)
    names = {parameter.name for parameter in inventory(spec("mixtral-8x7b"))}
    assert "layers.31.mlp.experts.7.down.weight" in names


def test_shared_experts_and_dense_layers_first() -> None:
    base = spec("qwen3-30b-a3b")
    assert base.experts is not None
    experts = replace(base.experts, shared_size=100, shared_gate=True, num_dense_layers=2)
    names = [parameter.name for parameter in inventory(replace(base, experts=experts))]
    assert "layers.1.mlp.gate.weight" in names and "layers.1.mlp.router.weight" not in names
    assert "layers.2.mlp.shared.gate.weight" in names and "layers.2.mlp.gate.weight" not in names
    extra = 46 * (3 * 100 * 2048 + 2048)  # the shared expert and its gate
    dense = 2 * (3 * 6144 * 2048 - 128 * (3 * 768 + 1) * 2048)  # for experts and routers
    assert num_parameters(replace(base, experts=experts)) == num_parameters(base) + extra + dense


def test_multi_query_in_a_parallel_block_shares_one_head_and_one_norm() -> None:
    counts = census(spec("palm-540b")).components
    assert counts[Component.KEY] == Count(118, 118 * 256 * 18432)
    assert counts[Component.NORM].parameters == (118 + 1) * 18432
    assert Component.BIAS not in counts and Component.UNEMBEDDING not in counts


def test_latent_attention_caches_one_row_and_widens_it_head_by_head() -> None:
    v3 = spec("deepseek-v3")
    assert v3.kv_elements(0) == 512 + 64
    counts = census(v3).components
    assert counts[Component.LATENT] == Count(2 * 61, 61 * 7168 * (1536 + 512 + 64))
    assert counts[Component.QUERY] == Count(61 * 128, 61 * 128 * (128 + 64) * 1536)
    assert counts[Component.KEY] == counts[Component.VALUE] == Count(61 * 128, 61 * 128 * 128 * 512)
    assert counts[Component.OUTPUT] == Count(61, 61 * 7168 * 128 * 128)
    lite = {parameter.name: parameter.shape for parameter in inventory(spec("deepseek-v2-lite"))}
    assert lite["layers.0.attention.query.weight"] == (16 * 192, 2048)
    assert not any("query_latent" in name for name in lite)


def test_windows_lie_where_the_family_has_them() -> None:
    assert spec("gemma-2-2b").windows[:4] == (4096, 0, 4096, 0)
    assert [n for n in spec("gemma-3-1b").windows if not n] == [0] * 4
    assert spec("gemma-3-1b").windows[4:7] == (512, 0, 512)
    assert set(spec("mistral-7b").windows) == {4096}
    assert spec("mistral-7b-v0.3").windows == ()
    assert spec("gpt-oss-20b").windows[:3] == (128, 0, 128)
    assert spec("olmo-3-7b").windows[2:5] == (4096, 0, 4096)


def test_every_preset_says_where_it_was_published() -> None:
    assert all(len(preset.source) > 20 for preset in PRESETS.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in PRESETS if spec(name).family in CLASSES and name != UNEVEN]
)
def test_transformers_counts_as_many_parameters_and_the_same_windows(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ours = spec(name)
    config = transformers_config(ours)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    saved = ("correction_bias", "layer_scalar")  # buffers that are learned all the same
    held = [*model.parameters()]
    held += [tensor for name, tensor in model.named_buffers() if name.endswith(saved)]
    assert sum(tensor.numel() for tensor in held) == num_parameters(ours)
    if ours.family in ONE_TENSOR_A_MATRIX:
        shapes = Counter(tuple(tensor.shape) for tensor in held)
        assert shapes == Counter(parameter.shape for parameter in inventory(ours))
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and any(ours.windows):
        assert [kind == "sliding_attention" for kind in kinds] == [n > 0 for n in ours.windows]

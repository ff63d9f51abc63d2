"""config.json -> ModelSpec: what is read, what is assumed, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.plan.published_configs import PUBLISHED_CONFIGS
from weights import families
from weights.config.writer import config_for
from weights.errors import CheckpointError
from weights.spec import Activation, ModelSpec, RopeScaling, RopeSpec
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

TINYLLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.35.0",
    "use_cache": True,
    "vocab_size": 32000,
}

GPT2: dict[str, Any] = PUBLISHED_CONFIGS["gpt-2-small"]


def read(config: dict[str, Any], **changes: Any) -> ModelSpec:
    changed = {**config, **changes}
    changed = {key: value for key, value in changed.items() if value is not ...}
    return families.resolve(changed).spec(changed)


def rope(config: dict[str, Any], **changes: Any) -> RopeSpec:
    return read(config, **changes).rope


def test_a_published_llama() -> None:
    spec = read(TINYLLAMA)
    assert (spec.family, spec.parameter_dtype, spec.eos_token_ids) == ("llama", "bf16", (2,))
    assert (spec.attention.head_dim, spec.attention.num_kv_heads) == (64, 4)
    assert spec.attention.scale == 64**-0.5
    assert spec.rope == RopeSpec(theta=10000.0, dim=64, original_max_positions=2048)
    assert families.resolve(TINYLLAMA).unread_keys(TINYLLAMA) == ()


def test_a_published_gpt2() -> None:
    spec = read(GPT2)
    assert (spec.mlp.intermediate_size, spec.mlp.gated) == (3072, False)
    assert (spec.tied_unembedding, spec.parameter_dtype) == (True, "f32")
    assert (spec.bos_token_id, spec.eos_token_ids) == (50256, (50256,))
    assert spec.mlp.activation is Activation.GELU_TANH
    assert families.resolve(GPT2).unread_keys(GPT2) == ()


@pytest.mark.parametrize(
    "spec",
    [
        tiny_llama(),
        tiny_llama(tied=True, num_kv_heads=1, attention_bias=True, mlp_bias=True),
        tiny_llama(rope=RopeSpec(scaling=RopeScaling.LINEAR, factor=2.0)),
        tiny_llama(rope=RopeSpec(scaling=RopeScaling.DYNAMIC, factor=4.0)),
        tiny_llama(
            rope=RopeSpec(
                theta=5e5, scaling=RopeScaling.LLAMA3, factor=8.0, original_max_positions=64
            )
        ),
        tiny_llama(
            rope=RopeSpec(
                scaling=RopeScaling.YARN,
                factor=4.0,
                original_max_positions=128,
                attention_factor=1.25,
                truncate=False,
            )
        ),
        tiny_gpt2(),
        tiny_gpt2(tied=False, activation=Activation.RELU, intermediate_size=96),
    ],
    ids=lambda spec: f"{spec.family}-{spec.rope.scaling.value}",
)
def test_a_written_config_reads_back_as_the_same_spec(spec: ModelSpec) -> None:
    config = config_for(spec, spec.parameter_dtype)
    assert families.resolve(config).spec(config) == spec


def test_absent_keys_take_the_reference_defaults() -> None:
    bare = {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    spec = read(bare)
    assert (spec.attention.num_kv_heads, spec.max_positions) == (4, 2048)
    assert (spec.norm.epsilon, spec.rope.theta, spec.tied_unembedding) == (1e-6, 10000.0, False)
    assert (spec.bos_token_id, spec.eos_token_ids) == (1, (2,))


def test_end_of_text_ids_may_be_several_or_none() -> None:
    assert read(TINYLLAMA, eos_token_id=[2, 7, 2]).eos_token_ids == (2, 7)
    assert read(TINYLLAMA, eos_token_id=None, bos_token_id=None).eos_token_ids == ()
    # The default id of an absent key does not exist in a vocabulary of 100.
    small = read(GPT2, vocab_size=100, eos_token_id=..., bos_token_id=...)
    assert (small.bos_token_id, small.eos_token_ids) == (None, ())


def test_head_dim_need_not_divide_the_width() -> None:
    spec = read(TINYLLAMA, head_dim=96)
    assert (spec.attention.head_dim, spec.attention.query_size, spec.rope.dim) == (96, 3072, 96)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind_key", ["type", "rope_type"])
def test_both_forms_of_rope_scaling_mean_the_same(key: str, kind_key: str) -> None:
    found = rope(TINYLLAMA, **{key: {kind_key: "linear", "factor": 2.5}})
    assert (found.scaling, found.factor) == (RopeScaling.LINEAR, 2.5)


def test_rope_parameters_hold_theta_in_the_newer_form() -> None:
    newer = {"rope_type": "default", "rope_theta": 500000.0}
    assert rope(TINYLLAMA, rope_theta=..., rope_parameters=newer).theta == 500000.0
    with pytest.raises(CheckpointError, match=r"rope_parameters\.rope_theta is 500000"):
        rope(TINYLLAMA, rope_parameters=newer)


def test_llama3_rope_takes_the_trained_context_from_either_place() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    long = {"max_position_embeddings": 131072, "rope_scaling": scaling}
    assert rope(TINYLLAMA, **long).original_max_positions == 8192
    outer = rope(TINYLLAMA, **long, original_max_position_embeddings=4096)
    assert outer.original_max_positions == 4096
    with pytest.raises(CheckpointError, match="high_freq_factor is 1, not above"):
        rope(TINYLLAMA, rope_scaling={**scaling, "high_freq_factor": 1.0})


def test_yarn_attention_factor_is_always_a_number() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    expected = 0.1 * math.log(4.0) + 1.0
    assert rope(TINYLLAMA, rope_scaling=scaling).attention_factor == expected
    given = {**scaling, "attention_factor": 1.5, "beta_fast": 16, "truncate": False}
    found = rope(TINYLLAMA, rope_scaling=given)
    assert (found.attention_factor, found.beta_fast, found.truncate) == (1.5, 16.0, False)
    paired = {**scaling, "mscale": 0.707, "mscale_all_dim": 1.0}
    ratio = (0.0707 * math.log(4.0) + 1.0) / expected
    assert rope(TINYLLAMA, rope_scaling=paired).attention_factor == pytest.approx(ratio)


def test_yarn_without_a_factor_takes_the_ratio_of_contexts() -> None:
    scaling = {"type": "yarn", "factor": None, "original_max_position_embeddings": 512}
    assert rope(TINYLLAMA, rope_scaling=scaling).factor == 4.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
        ({"reorder_and_upcast_attn": "yes"}, "reorder_and_upcast_attn must be true or false"),
        ({"scale_attn_weights": 1}, "scale_attn_weights must be true or false"),
        ({"add_cross_attention": True}, "add_cross_attention is true"),
        ({"n_ctx": 512}, "n_ctx contradicts n_positions 1024"),
        ({"n_head": 7}, "n_embd 768 is not a multiple of n_head 7"),
        ({"activation_function": "quick_gelu"}, 'activation_function is "quick_gelu"'),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"model_type": "mixtral"}, "is a mixture of experts, which is not served yet"),
        ({"model_type": "deepseek_v3"}, "latent attention"),
        ({"model_type": "qwen3_next"}, "recurrent state that is no key or value"),
        ({"model_type": "llama4"}, "chunked attention"),
        ({"model_type": "RefinedWebModel"}, "take the folder's present revision"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "BertModel is not served: it is"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "whisper"}, "sound"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "its head scores a whole text (a classifier or a reward model), and cannot continue",
        ),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "GPT2ForSequenceClassification"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_gpt2_facts_that_would_change_the_arithmetic_are_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(GPT2, **changes)
    assert words in str(caught.value)
    assert str(caught.value).startswith("config.json: ")


@pytest.mark.parametrize(
    "key",
    ["attn_logit_softcapping", "embedding_multiplier", "num_local_experts", "qk_layernorm"],
)
def test_an_unknown_key_that_speaks_of_arithmetic_is_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is 8"):
        read(TINYLLAMA, **{key: 8})


@pytest.mark.parametrize("neutral", [None, False, "", [], {}])
def test_a_feature_that_is_switched_off_is_no_obstacle(neutral: object) -> None:
    assert read(TINYLLAMA, sliding_window=neutral) == read(TINYLLAMA)


def test_other_unknown_keys_are_handed_back_for_the_log() -> None:
    config = {**TINYLLAMA, "training_recipe": "v3", "_name_or_path": "x"}
    assert families.resolve(config).unread_keys(config) == ("training_recipe",)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (TINYLLAMA, {"architectures": ["LLaMAForCausalLM"]}),
        (TINYLLAMA, {"architectures": ["LlamaModel"]}),
        (TINYLLAMA, {"pretraining_tp": 4}),
        (GPT2, {"architectures": ["GPT2Model"]}),
        (GPT2, {"reorder_and_upcast_attn": True}),
    ],
)
def test_names_and_keys_that_change_no_number_change_no_fact(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert read(config, **changes) == read(config)
    assert families.resolve({**config, **changes}).unread_keys({**config, **changes}) == ()


def test_unscaled_attention_is_a_scale_of_1() -> None:
    spec = read(GPT2, scale_attn_weights=False)
    assert spec.attention.scale == 1.0
    assert read(config_for(spec, "f32")) == spec


def test_resolve_names_what_is_served() -> None:
    served = ", ".join(family.name for family in families.FAMILIES)
    assert "gpt2" in served and "llama" in served
    given = '"MambaForCausalLM" is not served; served families: ' + served
    with pytest.raises(CheckpointError, match=f"architectures {given}"):
        families.resolve({"architectures": ["MambaForCausalLM"]})
    with pytest.raises(CheckpointError, match=r"did you mean LlamaForCausalLM\?; served"):
        families.resolve({"architectures": ["LlamaForCausalML"]})
    with pytest.raises(CheckpointError, match=f"model_type is missing; served families: {served}"):
        families.resolve({})
    assert families.by_name("gpt2").architecture == "GPT2LMHeadModel"
    with pytest.raises(ValueError, match="unknown family"):
        families.by_name("mamba")


def test_a_missing_tensor_is_named_in_the_words_of_its_folder() -> None:
    """Falcon's layers with two norms call them otherwise than those with one."""
    falcon, name = families.by_name("falcon"), "transformer.h.1.input_layernorm.weight"
    theirs = "transformer.h.1.ln_attn.weight"
    assert falcon.their_name(name, ["transformer.h.0.ln_attn.weight"]) == theirs
    assert falcon.their_name(name, ["transformer.h.0.input_layernorm.weight"]) == name
    assert falcon.full_name(theirs) == falcon.full_name(theirs.removeprefix("transformer.")) == name

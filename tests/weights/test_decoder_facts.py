"""What families read beside the facts of Llama: wrong values are named, silence means a default."""

from __future__ import annotations

from typing import Any

import pytest

from weights import families
from weights.errors import CheckpointError
from weights.spec import Activation, LayerInputSpec, ModelSpec, ParallelBlock, RopeSpec


def read(family: str, **facts: Any) -> ModelSpec:
    served = families.by_name(family)
    return served.spec({**served.sizes, **facts})


TYPES = ["full_attention"] * 7
SLIDING = [*TYPES, "sliding_attention"]


@pytest.mark.parametrize(
    ("family", "facts", "words"),
    [
        ("mistral", {"layer_types": TYPES}, "layer_types must be a list of 8 names"),
        ("mistral", {"layer_types": [*TYPES, "chunked_attention"]}, "chunked_attention"),
        (
            "mistral",
            {"sliding_window": None, "layer_types": SLIDING},
            "sliding_window is not given",
        ),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers is -1"),
        ("exaone4", {"sliding_window_pattern": "LGLG"}, "sliding_window_pattern"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers must be a list of 8"),
        ("smollm3", {"no_rope_layers": [2] * 8}, "no_rope_layers must be a list of 8"),
        ("gpt_neo", {"attention_types": [[["global"], 3]]}, "must come to 8 layers"),
        ("gpt_neo", {"attention_types": [["global", 8]]}, r"a list of \[names, times\]"),
        ("gpt_neo", {"attention_types": [[["near"], 8]]}, "global or local"),
        ("bloom", {"n_embed": 128}, "n_embed contradicts hidden_size 64"),
        ("bloom", {"num_attention_heads": 8}, "num_attention_heads contradicts n_head 4"),
        ("bloom", {"n_inner": 100}, "n_inner is 100; only 256 is served"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "post_layernorm is true"),
        ("falcon", {"parallel_attn": False, "num_ln_in_parallel_attn": 2}, "the older design"),
        (
            "falcon",
            {"new_decoder_architecture": True, "parallel_attn": False},
            "parallel_attn is false; only true is served: the newer design is parallel",
        ),
        (
            "falcon",
            {"new_decoder_architecture": True, "n_head_kv": 3},
            "n_head_kv is 3, of which 4 query heads are no multiple",
        ),
        ("falcon", {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads is 2; only 4"),
        ("falcon", {"ff_factor": 3}, "ff_factor is 3; only 4"),
        ("falcon", {"n_head": 8}, "n_head contradicts num_attention_heads 4"),
        ("gpt_neox", {"rotary_pct": 1.5}, "rotary_pct is 1.5"),
        ("gpt_neox", {"hidden_size": 66}, "66 is not a multiple of num_attention_heads 4"),
        ("gpt_neox", {"head_dim": 32}, "head_dim is 32"),
        ("gptj", {"rotary_dim": 7}, "rotary_dim is 7"),
        ("gptj", {"rotary_dim": 4096}, "rotary_dim is 4096"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping is -1"),
        ("olmo", {"clip_qkv": 0}, "clip_qkv is 0"),
        ("apertus", {"rope_parameters": None}, "rope_parameters is missing"),
        ("apertus", {"post_norm": True}, "post_norm is true"),
        ("llama", {"hidden_act": "xielu"}, 'hidden_act is "xielu"'),
        ("ministral3", {"rope_parameters": None}, "rope_parameters is missing"),
        (
            "ministral3",
            {"rope_parameters": {"original_max_position_embeddings": 9}},
            "llama_4_scaling_beta is missing",
        ),
        ("mistral", {"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
        ("hunyuan_v1_dense", {"num_experts": 8}, "num_experts is 8"),
        ("hunyuan_v1_dense", {"use_qk_norm": False}, "use_qk_norm is false"),
        (
            "hunyuan_v1_dense",
            {"rope_scaling": {"type": "dynamic", "alpha": 0}},
            "rope_scaling.alpha is 0",
        ),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 9.0}}, "alpha is 9"),
        ("gemma", {"use_bidirectional_attention": True}, "a decoder looks back alone"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm is true"),
        ("gpt1", {"n_ctx": 256}, "n_ctx contradicts n_positions 512"),
        ("gpt_bigcode", {"num_key_value_heads": 2}, "num_key_value_heads is 2; only 1"),
        (
            "gpt_bigcode",
            {"multi_query": False, "num_key_value_heads": 1},
            "num_key_value_heads is 1; only 4",
        ),
        ("mpt", {"attn_config": {"qk_ln": True}}, "attn_config.qk_ln is true"),
        ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_config.attn_type"),
        ("mpt", {"attn_config": {"prefix_lm": True}}, "attn_config.prefix_lm is true"),
        ("mpt", {"attn_config": {"kv_n_heads": 2}}, "attn_config.kv_n_heads is 2"),
        ("mpt", {"attn_config": {"alibi_bias_max": 0}}, "attn_config.alibi_bias_max is 0"),
        ("mpt", {"attn_config": {"alibi": False}, "learned_pos_emb": False}, "one is needed"),
        ("mpt", {"no_bias": False}, "no_bias is false"),
        ("mpt", {"norm_type": "rmsnorm"}, "norm_type is"),
        ("mpt", {"logit_scale": "inv_sqrt_d_model"}, "logit_scale is"),
        ("stablelm", {"partial_rotary_factor": 0.01}, "of which 0 turn"),
        ("glm4", {"rope_parameters": {"partial_rotary_factor": 2.0}}, "partial_rotary_factor is 2"),
        ("olmo3", {"rope_parameters": {"full_attention": 3}}, "full_attention must be an object"),
        (
            "olmo3",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}, "other": {}}},
            "rope_parameters.other",
        ),
        (
            "phi3",
            {
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0] * 8,
                    "long_factor": [0] * 8,
                }
            },
            "long_factor has 0",
        ),
        ("gemma4", {"enable_moe_block": True}, "enable_moe_block is true.*experts beside the MLP"),
        ("gemma4", {"num_kv_shared_layers": 3}, "no layer before these keeps"),
        ("gemma4", {"per_layer_config": {"7": {"head_dim": 9}}}, "the same of every layer"),
        ("gemma4", {"use_bidirectional_attention": "all"}, "text looks back alone"),
        ("ernie4_5", {"rope_interleaved": False}, "rope_interleaved is false"),
    ],
)
def test_a_wrong_fact_is_named(family: str, facts: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(family, **facts)


def test_what_a_file_leaves_out_is_the_config_classs_default() -> None:
    assert read("mistral").windows == (4096,) * 8
    assert read("mistral", sliding_window=None).windows == ()
    assert read("qwen2").windows == ()
    assert read("gemma2").windows == (4096, 0) * 4
    assert read("gemma2").attention.soft_cap == 50.0
    assert read("gemma2", attn_logit_softcapping=None).attention.soft_cap is None
    assert read("gpt_neo").windows == (0, 256) * 4
    assert read("exaone4", sliding_window=None).rotary_layers == ()
    assert read("smollm3").rotary_layers == (True, True, True, False) * 2
    assert read("opt").position_offset == 2
    glm = read("glm", vocab_size=151552)
    assert (glm.rope.dim, glm.attention.head_dim, glm.attention.qkv_bias) == (64, 128, True)
    assert (glm.norm.epsilon, glm.eos_token_ids) == (1.5625e-7, (151329, 151336, 151338))
    helium = read("helium")
    assert (helium.rope.theta, helium.norm.epsilon) == (100000.0, 1e-8)
    assert (helium.attention.head_dim, helium.eos_token_ids) == (128, (2,))
    gemma4 = read("gemma4")
    assert gemma4.windows == (512,) * 5 + (0, 512, 0)  # the last sees all
    assert gemma4.attention.heads == (4, 2, 512) and gemma4.layer_attention(0).heads == (4, 2, 256)
    assert (gemma4.rope.theta, gemma4.rope.proportion, gemma4.rope.dim) == (1e6, 0.25, 512)
    assert gemma4.layer_input == LayerInputSpec(256, 262144)
    rope = {"original_max_position_embeddings": 9, "llama_4_scaling_beta": 0}
    assert read("ministral3", rope_parameters=rope).attention.query_scale is None


def test_gpt_neox_reads_the_published_keys_of_its_rope() -> None:
    older = read("gpt_neox", hidden_size=256, rotary_pct=0.5, rotary_emb_base=5000)
    newer = read(
        "gpt_neox",
        hidden_size=256,
        rope_parameters={"rope_theta": 5000.0, "partial_rotary_factor": 0.5},
    )
    assert older == newer and (older.rope.dim, older.rope.theta) == (32, 5000.0)


def test_falcon_40b_reads_the_keys_that_were_published_first() -> None:
    older = {"n_embed": 64, "n_head": 4, "n_layer": 8, "n_head_kv": 2, "vocab_size": 512}
    spec = families.by_name("falcon").spec({**older, "new_decoder_architecture": True})
    assert spec == read("falcon", num_kv_heads=2, new_decoder_architecture=True)
    assert spec.attention.num_kv_heads == 2 and spec.parallel is ParallelBlock.TWO_NORMS


def test_an_alpha_stretches_theta_once() -> None:
    """By hand: 10000 x 1000^(16 / 14) for heads of 16 channels."""
    scaling = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32}
    rope = read("hunyuan_v1_dense", rope_scaling=scaling).rope
    assert rope.theta == pytest.approx(26826957.95, rel=1e-9)
    assert rope == RopeSpec(rope.theta, 16, original_max_positions=2048)


def test_gemma_says_gelu_and_means_the_one_by_tanh() -> None:
    for facts in ({"hidden_act": "gelu"}, {"hidden_act": "gelu", "hidden_activation": None}):
        assert read("gemma", **facts).mlp.activation is Activation.GELU_TANH


def test_each_kind_of_layer_may_have_a_rope_of_its_own() -> None:
    older = read("gemma3", rope_theta=2e6, rope_local_base_freq=5e3)
    newer = read(
        "gemma3",
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
        },
    )
    assert (older.rope, older.local_rope) == (newer.rope, newer.local_rope)
    assert newer.layer_rope(0) == newer.local_rope and newer.layer_rope(5) == newer.rope

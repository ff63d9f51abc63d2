"""Tiny checkpoints of every family, made by transformers' own classes and made sharp.

A case is a family's config class and the facts that it changes; what is not named is in ``BASE``.
Two cases of a family differ in every fact that its config.json may leave open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

VOCAB = 512
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# What holds for configs that have names of their own for sizes.
IDS: dict[str, Any] = {
    key: BASE[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
}
NO_GROUPS = {key: fact for key, fact in BASE.items() if key != "num_key_value_heads"}
GPT = IDS | {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}
BLOOM = IDS | {"hidden_size": 96, "n_layer": 3, "n_head": 8}
FALCON = {key: fact for key, fact in NO_GROUPS.items() if key != "intermediate_size"}
FALCON_ALIBI = "sdpa"  # "eager" of transformers 5.23 adds its bias twice
MPT = IDS | {"d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 256}
NEO = IDS | {"hidden_size": 64, "max_position_embeddings": 256}
OPT = NEO | {"num_hidden_layers": 3, "num_attention_heads": 4, "word_embed_proj_dim": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
}
WINDOW = 24  # shorter than the prompts


UNSCALED = {"q_proj": 0.3}  # without a scale of the scores
HEAD_NORMS = {"q_norm": 3.0, "k_norm": 3.0}  # whose weights alone say how sharp attention is
TURNED_HEAD_NORMS = {"query_layernorm": 3.0, "key_layernorm": 3.0}
LAYER_HEAD_NORMS = {"q_layernorm": 3.0, "k_layernorm": 3.0}
# A tied one that is scaled up, or normalised, would repeat its own token.
SMALL_EMBEDDING = {"embed_tokens": 0.1, "embeddings_layernorm": 0.15}

SHARPER = {"q_proj": 2.5}
FLATTER = {"q_proj": 0.4}  # where norms that add 1 to their weights double what they give
GEMMA4: dict[str, Any] = {
    "head_dim": 16,
    "num_hidden_layers": 6,
    "sliding_window": WINDOW,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCAB,
}
# Streams that never grow: sharper matrices.
POST_NORM = {"c_attn": 3.0, "positions_embed": 0.4, "mlp.c_proj": 0.3}


@dataclass(frozen=True)
class Case:
    """``config`` is the config class's name, ``facts`` what the case says beside ``base``.
    ``gains`` multiply the standard deviation of tensors with such a name. ``attention`` is the
    implementation that transformers computes with."""

    config: str
    facts: dict[str, Any] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=lambda: BASE)
    attention: str = "eager"


CASES: dict[str, tuple[Case, ...]] = {
    "llama": (Case("LlamaConfig"), Case("LlamaConfig", {"tie_word_embeddings": True})),
    "qwen2": (
        Case("Qwen2Config", {"tie_word_embeddings": True}),
        Case(
            "Qwen2Config",
            {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        ),
        Case("Qwen2Config", {"rope_parameters": YARN, "num_key_value_heads": 4}),
    ),
    "qwen3": (
        Case("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}, HEAD_NORMS),
        Case(
            "Qwen3Config",
            {
                "head_dim": 16,
                "attention_bias": True,
                "use_sliding_window": True,
                "sliding_window": WINDOW,
                "max_window_layers": 2,
            },
            HEAD_NORMS,
        ),
    ),
    "mistral": (
        Case("MistralConfig", {"sliding_window": WINDOW}),
        Case("MistralConfig", {"sliding_window": None, "head_dim": 32}),
    ),
    "ministral": (
        Case(
            "MinistralConfig",
            {
                "head_dim": 16,
                "sliding_window": WINDOW,
                "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            },
        ),
        Case(
            "MinistralConfig", {"sliding_window": 40, "head_dim": 32, "tie_word_embeddings": True}
        ),
    ),
    "ministral3": (
        Case(
            "Ministral3Config",
            {
                "head_dim": 32,
                "rope_parameters": {
                    **YARN,
                    "original_max_position_embeddings": 16,
                    "rope_theta": 5000.0,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "llama_4_scaling_beta": 0.3,
                },
            },
        ),
        Case(
            "Ministral3Config",
            {
                "head_dim": 16,
                "sliding_window": WINDOW,
                "tie_word_embeddings": True,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5000.0,
                    "original_max_position_embeddings": 40,
                    "llama_4_scaling_beta": 0.8,
                },
            },
        ),
    ),
    "apertus": (
        Case("ApertusConfig", {"rope_parameters": LLAMA3}, HEAD_NORMS),
        Case(
            "ApertusConfig",
            {
                "num_key_value_heads": 4,
                "attention_bias": True,
                "tie_word_embeddings": True,
                "hidden_act": "relu2",
                "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            },
            HEAD_NORMS,
        ),
    ),
    "seed_oss": (
        Case("SeedOssConfig", {"head_dim": 32, "attention_out_bias": True, "mlp_bias": True}),
        Case("SeedOssConfig", {"head_dim": 16, "attention_bias": False}),
    ),
    "smollm3": (
        Case("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}),
        Case(
            "SmolLM3Config",
            {
                "no_rope_layer_interval": 2,
                "use_sliding_window": True,
                "sliding_window": WINDOW,
                "attention_bias": True,
                "mlp_bias": True,
                "tie_word_embeddings": False,
            },
        ),
    ),
    "granite": (
        Case(
            "GraniteConfig",
            {
                "embedding_multiplier": 6.0,
                "residual_multiplier": 0.4,
                "attention_multiplier": 0.2,
                "logits_scaling": 3.0,
                "tie_word_embeddings": True,
            },
            SMALL_EMBEDDING,
        ),
        Case("GraniteConfig", {"attention_multiplier": 0.3, "attention_bias": True}),
    ),
    "arcee": (
        Case("ArceeConfig"),
        Case("ArceeConfig", {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN}),
    ),
    "olmo": (
        Case("OlmoConfig", {"clip_qkv": 3.0}, SHARPER),
        Case("OlmoConfig", {"attention_bias": True, "tie_word_embeddings": True}, {"lm_head": 0.1}),
    ),
    "olmo2": (
        Case("Olmo2Config", {}, HEAD_NORMS),
        Case("Olmo2Config", {"num_key_value_heads": 4, "attention_bias": True}, HEAD_NORMS),
    ),
    "olmo3": (
        Case("Olmo3Config", {"num_hidden_layers": 4, "sliding_window": WINDOW}, HEAD_NORMS),
        Case(
            "Olmo3Config",
            {
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "sliding_window": WINDOW,
                "rope_parameters": {
                    "full_attention": {**YARN, "rope_theta": 5000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
                },
            },
            HEAD_NORMS,
        ),
    ),
    "gemma": (
        # Of this size the embedding is scaled by what is no whole number.
        Case("GemmaConfig", {"head_dim": 32, "hidden_size": 80}, SMALL_EMBEDDING),
        Case(
            "GemmaConfig",
            {"head_dim": 16, "num_key_value_heads": 1, "hidden_act": "gelu"},
            SMALL_EMBEDDING,
        ),
    ),
    "gemma2": (
        Case("Gemma2Config", {"head_dim": 32, "sliding_window": WINDOW}, SMALL_EMBEDDING | SHARPER),
        Case(
            "Gemma2Config",
            {
                "head_dim": 16,
                "sliding_window": WINDOW,
                "attn_logit_softcapping": 12.0,
                "final_logit_softcapping": 5.0,
                "query_pre_attn_scalar": 16,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            SMALL_EMBEDDING | SHARPER,
        ),
        Case(
            "Gemma2Config",
            {
                "head_dim": 16,
                "sliding_window": WINDOW,
                "attn_logit_softcapping": None,
                "final_logit_softcapping": None,
            },
            SMALL_EMBEDDING | SHARPER,
        ),
    ),
    "gemma3": (
        Case(
            "Gemma3TextConfig",
            {"head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 2},
            SMALL_EMBEDDING,
        ),
        Case(
            "Gemma3TextConfig",
            {
                "head_dim": 16,
                "sliding_window": WINDOW,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                },
                "query_pre_attn_scalar": 1,
            },
            SMALL_EMBEDDING,
        ),
    ),
    "gemma4": (
        Case(
            "Gemma4TextConfig",
            {
                **GEMMA4,
                "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "num_key_value_heads": 4,
                "global_head_dim": 32,
                "attention_k_eq_v": True,
                "num_global_key_value_heads": 1,
                "final_logit_softcapping": 5.0,
            },
            SMALL_EMBEDDING,
        ),
        Case(
            "Gemma4TextConfig",
            {
                **GEMMA4,
                "global_head_dim": 48,
                "layer_types": ["full_attention", *["sliding_attention"] * 2] * 2,
                "rope_parameters": {
                    "full_attention": {
                        "rope_type": "proportional",
                        "partial_rotary_factor": 0.5,
                        "rope_theta": 500.0,
                    },
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
                },
                "attention_bias": True,
                "tie_word_embeddings": False,
            },
            SMALL_EMBEDDING,
        ),
        Case(
            "Gemma4TextConfig",
            {
                **GEMMA4,
                "num_hidden_layers": 7,
                "layer_types": [*["sliding_attention"] * 2, "full_attention"] * 2
                + ["full_attention"],
                "num_key_value_heads": 1,
                "global_head_dim": 32,
                "num_kv_shared_layers": 4,
                "use_double_wide_mlp": True,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": VOCAB,
            },
            SMALL_EMBEDDING,
        ),
    ),
    "phi3": (
        Case("Phi3Config", {"sliding_window": WINDOW}),
        Case(
            "Phi3Config",
            {
                "tie_word_embeddings": True,
                "num_key_value_heads": 4,
                "max_position_embeddings": 1024,
                "original_max_position_embeddings": 256,
                "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 256},
            },
        ),
    ),
    "starcoder2": (
        Case("Starcoder2Config", {"sliding_window": WINDOW}, SMALL_EMBEDDING),
        Case("Starcoder2Config", {"use_bias": False, "tie_word_embeddings": False}),
    ),
    "ernie4_5": (
        Case("Ernie4_5Config", {"head_dim": 32}),
        Case("Ernie4_5Config", {"head_dim": 16, "use_bias": True, "tie_word_embeddings": False}),
    ),
    "glm": (
        Case("GlmConfig", {"head_dim": 32}),
        Case(
            "GlmConfig",
            {
                "head_dim": 16,
                "attention_bias": False,
                "tie_word_embeddings": True,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5000.0,
                    "partial_rotary_factor": 0.75,
                },
            },
        ),
    ),
    "helium": (
        Case("HeliumConfig", {"head_dim": 16}),
        Case(
            "HeliumConfig",
            {
                "head_dim": 16,
                "num_key_value_heads": 4,
                "attention_bias": True,
                "mlp_bias": True,
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            },
        ),
    ),
    "glm4": (
        Case("Glm4Config", {"head_dim": 32}),
        Case("Glm4Config", {"head_dim": 16, "attention_bias": False, "tie_word_embeddings": True}),
    ),
    "exaone4": (
        Case("Exaone4Config", {"sliding_window": WINDOW, "num_hidden_layers": 4}, HEAD_NORMS),
        Case(
            "Exaone4Config",
            {
                "sliding_window": None,
                "layer_types": ["full_attention"] * 3,
                "tie_word_embeddings": True,
                "rope_parameters": LLAMA3,
            },
            HEAD_NORMS,
        ),
    ),
    "hunyuan_v1_dense": (
        Case(
            "HunYuanDenseV1Config",
            {
                "head_dim": 32,
                "rope_parameters": {
                    "rope_type": "dynamic",
                    "rope_theta": 5000.0,
                    "factor": 1.0,
                    "alpha": 50.0,
                },
            },
            TURNED_HEAD_NORMS,
        ),
        Case(
            "HunYuanDenseV1Config",
            {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
            TURNED_HEAD_NORMS,
        ),
    ),
    "cohere": (
        Case("CohereConfig", {"logit_scale": 0.5, "attention_bias": True}),
        Case("CohereConfig", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
        Case("CohereConfig", {"use_qk_norm": True}, HEAD_NORMS),
    ),
    "cohere2": (
        Case("Cohere2Config", {"sliding_window": WINDOW, "num_hidden_layers": 4}),
        Case(
            "Cohere2Config",
            {
                "sliding_window": WINDOW,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "attention_bias": True,
                "logit_scale": 1.0,
            },
        ),
    ),
    "phi": (
        Case("PhiConfig"),
        Case(
            "PhiConfig",
            {
                "num_key_value_heads": 4,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.75,
                },
            },
        ),
        Case("PhiConfig", {"qk_layernorm": True}, LAYER_HEAD_NORMS),
    ),
    "nemotron": (
        Case("NemotronConfig", {"head_dim": 32, "norm_eps": 1e-3}, FLATTER),
        Case(
            "NemotronConfig",
            {
                "attention_bias": True,
                "mlp_bias": True,
                "hidden_act": "gelu",
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5000.0,
                    "partial_rotary_factor": 0.75,
                },
            },
            FLATTER,
        ),
    ),
    "gptj": (
        Case("GPTJConfig", {"rotary_dim": 8}, base=GPT),
        Case("GPTJConfig", {"rotary_dim": 16, "n_inner": 96, "n_head": 2}, base=GPT),
    ),
    "gpt_neo": (
        Case(
            "GPTNeoConfig",
            {
                "num_layers": 4,
                "num_heads": 4,
                "window_size": WINDOW,
                "attention_types": [[["global", "local"], 2]],
            },
            UNSCALED,
            NEO,
        ),
        Case(
            "GPTNeoConfig",
            {
                "num_layers": 2,
                "num_heads": 2,
                "attention_types": [[["global"], 2]],
                "intermediate_size": 96,
                "tie_word_embeddings": False,
            },
            UNSCALED,
            NEO,
        ),
    ),
    "gpt_neox": (
        Case("GPTNeoXConfig", base=NO_GROUPS),
        Case(
            "GPTNeoXConfig",
            {
                "num_attention_heads": 2,
                "use_parallel_residual": False,
                "attention_bias": False,
                "tie_word_embeddings": True,
                "rope_parameters": {
                    "rope_type": "linear",
                    "rope_theta": 5000.0,
                    "factor": 2.0,
                    "partial_rotary_factor": 0.5,
                },
            },
            base=NO_GROUPS,
        ),
    ),
    "bloom": (
        Case("BloomConfig", {"n_head": 6}, SMALL_EMBEDDING, BLOOM),
        Case("BloomConfig", {"tie_word_embeddings": False}, SMALL_EMBEDDING, BLOOM),
    ),
    "falcon": (
        Case("FalconConfig", base=FALCON),  # 7B
        Case(  # 40B and 180B
            "FalconConfig",
            {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
            base=FALCON,
        ),
        Case(  # 2 11B
            "FalconConfig",
            {
                "new_decoder_architecture": True,
                "num_ln_in_parallel_attn": 1,
                "num_kv_heads": 4,
                "ffn_hidden_size": 96,
                "activation": "relu",
                "tie_word_embeddings": False,
                "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
            },
            base=FALCON,
        ),
        Case(  # RW
            "FalconConfig",
            {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
            {"ln_f.bias": 0.1},
            base=FALCON,
            attention=FALCON_ALIBI,
        ),
        Case(  # six heads, whose slopes bfloat16 can hold
            "FalconConfig",
            {"alibi": True, "num_attention_heads": 6, "hidden_size": 96},
            base=FALCON,
            attention=FALCON_ALIBI,
        ),
    ),
    "mpt": (
        Case("MptConfig", {"attn_config": {"clip_qkv": 3.0}}, {"Wqkv": 1.5}, MPT),
        Case(
            "MptConfig",
            {
                "n_heads": 6,
                "d_model": 96,
                "attn_config": {"softmax_scale": 0.2},
                "tie_word_embeddings": False,
            },
            {"wte": 0.5},
            MPT,
        ),
    ),
    "gpt_bigcode": (
        Case("GPTBigCodeConfig", base=GPT),
        Case("GPTBigCodeConfig", {"multi_query": False}, base=GPT),
        Case("GPTBigCodeConfig", {"n_inner": 96, "tie_word_embeddings": False}, base=GPT),
    ),
    "opt": (
        Case("OPTConfig", {"ffn_dim": 96}, base=OPT),
        Case(
            "OPTConfig",
            {
                "ffn_dim": 160,
                "activation_function": "gelu",
                "enable_bias": False,
                "tie_word_embeddings": False,
            },
            base=OPT,
        ),
        Case(
            "OPTConfig",
            {"ffn_dim": 96, "do_layer_norm_before": False, "word_embed_proj_dim": 32},
            base=OPT,
        ),
        Case("OPTConfig", {"ffn_dim": 96, "layer_norm_elementwise_affine": False}, base=OPT),
    ),
    "gpt1": (
        Case("OpenAIGPTConfig", gains=POST_NORM, base=GPT),
        Case(
            "OpenAIGPTConfig",
            {
                "afn": "relu",
                "n_head": 2,
                "layer_norm_epsilon": 1e-3,
                "tie_word_embeddings": False,
            },
            gains=POST_NORM,
            base=GPT,
        ),
    ),
    "stablelm": (
        Case("StableLmConfig", {"use_qkv_bias": True}),
        Case(
            "StableLmConfig",
            {
                "use_parallel_residual": True,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5,
                },
            },
        ),
        Case(
            "StableLmConfig",
            {"qk_layernorm": True, "use_parallel_residual": True},
            LAYER_HEAD_NORMS,
        ),
    ),
}


def num_saved(model: Any) -> int:
    """Elements of what a model saves, each once: its parameters, and the buffers among them."""
    return sum({one.data_ptr(): one.numel() for one in model.state_dict().values()}.values())


def write_case(case: Case, folder: Path, seed: int = 0) -> Any:
    """Writes the case's folder as transformers saves it, and returns its model, in float32."""
    import transformers

    config = getattr(transformers, case.config)(**{**case.base, **case.facts})
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=case.attention, dtype=torch.float32
    ).eval()
    sharpen(model, case, seed)
    model.save_pretrained(folder)
    return model


# Standard deviations for inputs of unit RMS, by what a tensor's name holds: as the synthetic
# checkpoints' (weights.synthetic.checkpoint), so that attention looks at few tokens.
_GAINS = {
    "embed_tokens": 3.0,
    "wte": 3.0,
    "wpe": 5.0,
    "embed_positions": 5.0,
    "embed_in": 3.0,
    "word_embeddings": 3.0,
    "query_key_value": 2.1,
    "dense_h_to_4h": 2.0,
    "dense_4h_to_h": 1.0,
    "positions_embed": 5.0,
    "tokens_embed": 3.0,
    "c_attn": 2.1,
    "Wqkv": 2.1,
    "q_proj": 2.1,
    "k_proj": 2.1,
    "qkv_proj": 2.1,
    "v_proj": 1.0,
    "o_proj": 1.5,
    "out_proj": 1.5,
    "dense": 1.5,
    "attn.c_proj": 1.5,
    "gate": 2.0,
    "up_proj": 2.0,
    "c_fc": 2.0,
    "fc1": 2.0,
    "fc_in": 2.0,
    "down_proj": 1.0,
    "c_proj": 1.0,
    "lm_head": 3.0,
}


@torch.no_grad()
def sharpen(model: Any, case: Case, seed: int) -> None:
    """Random values for every parameter, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1 or "_norm" in name:  # Cohere's norms of heads are [heads, hd]
            if name.endswith("bias"):
                values *= 0.1
            else:  # a norm's weight: around 1, or around 0 where 1 is added to it
                values = values * 0.2 + parameter.mean().round()
        else:
            gain = next((gain for part, gain in _GAINS.items() if part in name), 1.0)
            if any(
                part in name for part in ("down", "mlp.c_proj", "fc2", "fc_out", "dense_4h_to_h")
            ):
                values -= values.mean(dim=1, keepdim=True)
            values *= gain / math.sqrt(parameter.shape[-1])
        for part, factor in case.gains.items():
            if part in name:
                values *= factor
        parameter.copy_(values)
    for name, buffer in sorted(model.named_buffers()):
        if name.endswith("layer_scalar"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)

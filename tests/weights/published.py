"""Parameter counts as they were published, and how transformers writes the presets' shapes."""

from __future__ import annotations

from typing import Any

from weights.spec import (
    Activation,
    AttentionSpec,
    ModelSpec,
    ParallelBlock,
    PositionKind,
    QkNorm,
)

# Totals of every parameter, tied tables once: model cards, papers, or the files' own headers.
PARAMETERS = {
    "command-r": 34_980_831_232,
    "command-r-08-2024": 32_296_476_672,
    "command-r7b": 8_028_033_024,
    "deepseek-v3": 671_026_419_200,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "gemma-3-270m": 268_098_176,
    "gpt-1": 116_534_784,
    "gpt-2-small": 124_439_808,
    "gpt-2-medium": 354_823_168,
    "gpt-2-large": 774_030_080,
    "gpt-2-xl": 1_557_611_200,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "llama-1-7b": 6_738_415_616,
    "llama-1-13b": 13_015_864_320,
    "llama-1-33b": 32_528_943_616,
    "llama-1-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "mistral-nemo": 12_247_782_400,
    "mistral-small-22b": 22_247_282_688,
    "mistral-small-24b": 23_572_403_200,
    "ministral-8b": 8_019_808_256,
    "olmo-1b": 1_176_764_416,
    "olmo-7b": 6_888_095_744,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "olmo-3-7b": 7_298_011_136,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "phi-3-medium": 13_960_238_080,
    "phi-3.5-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "smollm3-3b": 3_075_098_624,
    "starcoder2-3b": 3_030_371_328,
    "starcoder2-7b": 7_173_923_840,
    "starcoder2-15b": 15_957_889_024,
    "stablelm-3b-4e1t": 2_795_443_200,
    "stablelm-2-1.6b": 1_644_515_328,
    "bloom-560m": 559_214_592,
    "bloom-7b1": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
    "mpt-7b": 6_649_286_656,
    "mpt-30b": 29_957_200_896,
}

# (published, how far off a rounded figure may be)
ROUNDED = {
    "gpt-1": (117e6, 0.005),
    "gpt-3-125m": (125e6, 0.005),
    "gpt-3-350m": (350e6, 0.02),
    "gpt-3-760m": (760e6, 0.001),
    "gpt-3-1.3b": (1.3e9, 0.02),
    "gpt-3-2.7b": (2.7e9, 0.02),
    "gpt-3-6.7b": (6.7e9, 0.01),
    "gpt-3-13b": (13e9, 0.01),
    "gpt-3": (175e9, 0.002),
    "palm-8b": (8.63e9, 0.001),
    "palm-62b": (62.5e9, 0.001),
    "palm-540b": (540.35e9, 0.0001),
    "mixtral-8x7b": (46.7e9, 0.001),
    "mixtral-8x22b": (141e9, 0.005),
    "ministral-3-3b": (3.4e9, 0.01),
    "ministral-3-8b": (8.4e9, 0.011),
    "ministral-3-14b": (13.5e9, 0.001),
    "gemma-3-4b": (3_209e6 + 675e6, 0.001),  # without and with the embedding: table 1 of the report
    "gemma-3-12b": (10_759e6 + 1_012e6, 0.001),
    "gemma-4-e2b": (2.3e9 + 262144 * 35 * 256, 0.005),  # published without layers' tables
    "gemma-4-e4b": (4.5e9 + 262144 * 42 * 256, 0.02),
    "gemma-4-31b": (30.7e9, 0.001),
    "gemma-3-27b": (25_600e6 + 1_416e6, 0.001),
    "qwen3-235b-a22b": (235e9, 0.001),
    "qwen3-coder-480b-a35b": (480e9, 0.001),
    "deepseek-v2-lite": (15.7e9, 0.001),
    "deepseek-v2": (236e9, 0.002),
    "deepseek-v3": (671e9, 0.0001),
    "kimi-k2": (1.04e12, 0.015),
    "gpt-oss-20b": (20.91e9, 0.0003),
    "gpt-oss-120b": (116.83e9, 0.0001),
    "falcon-7b": (7.22e9 - 65024 * 4544, 0.001),  # the files hold the tied table twice
    "falcon-40b": (41.8e9 - 65024 * 8192, 0.001),
    "falcon-180b": (179.5e9 - 65024 * 14848, 0.001),
    "granite-3.1-2b": (2.5e9, 0.02),
    "granite-3.1-8b": (8.1e9, 0.01),
    "olmo-3-32b": (32.2e9, 0.002),
    "command-r-plus": (104e9, 0.002),
    "falcon-rw-1b": (1.3e9, 0.01),
    "gpt-j-6b": (6.05e9, 0.001),
    "gpt-neo-125m": (125e6, 0.002),
    "gpt-neo-1.3b": (1.3e9, 0.013),
    "gpt-neo-2.7b": (2.7e9, 0.02),
    "opt-125m": (125e6, 0.002),
    "opt-1.3b": (1.3e9, 0.013),
    "opt-6.7b": (6.7e9, 0.007),
    "opt-13b": (13e9, 0.012),
    "opt-30b": (30e9, 0.001),
    "opt-66b": (66e9, 0.005),
    "starcoder-15b": (15.5e9, 0.002),
    "glm-4-9b": (9.4e9, 0.0001),
    "exaone-4-32b": (32.0e9, 0.0002),
    "exaone-4-1.2b": (1.28e9, 0.001),
    "seed-oss-36b": (36e9, 0.005),
    "minitron-4b": (4.19e9, 0.001),
    "afm-4.5b": (4.6e9, 0.005),
    "ernie-4.5-0.3b": (0.36e9, 0.003),
}

# Of mixtures: (what a token passes as published, how far off, with the embedding's table or not)
ACTIVE = {
    "mixtral-8x7b": (12.9e9, 0.002, True),
    "mixtral-8x22b": (39e9, 0.005, True),
    "qwen3-30b-a3b": (3.3e9, 0.02, True),
    "qwen3-235b-a22b": (22e9, 0.01, True),
    "qwen3-coder-480b-a35b": (35e9, 0.015, True),
    "deepseek-v2-lite": (2.4e9, 0.025, False),
    "deepseek-v2": (21e9, 0.02, True),
    "deepseek-v3": (37e9, 0.02, True),
    "kimi-k2": (32.6e9, 0.01, True),
    "gpt-oss-20b": (3.61e9, 0.001, False),
    "gpt-oss-120b": (5.13e9, 0.001, False),
}

_ACTIVATIONS = {
    Activation.SILU: "silu",
    Activation.GELU_TANH: "gelu_pytorch_tanh",
    Activation.GELU_ERF: "gelu",
    Activation.RELU: "relu",
    Activation.RELU2: "relu2",
}
# The config class of a family's models in transformers; PaLM has none.
CLASSES = {
    "arcee": "ArceeConfig",
    "bloom": "BloomConfig",
    "cohere": "CohereConfig",
    "cohere2": "Cohere2Config",
    "deepseek_v2": "DeepseekV2Config",
    "deepseek_v3": "DeepseekV3Config",
    "ernie4_5": "Ernie4_5Config",
    "exaone4": "Exaone4Config",
    "falcon": "FalconConfig",
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3": "Gemma3TextConfig",
    "glm4": "Glm4Config",
    "gemma4": "Gemma4TextConfig",
    "gpt1": "OpenAIGPTConfig",
    "gpt2": "GPT2Config",
    "gpt_bigcode": "GPTBigCodeConfig",
    "gpt_neo": "GPTNeoConfig",
    "gpt_neox": "GPTNeoXConfig",
    "gpt_oss": "GptOssConfig",
    "gptj": "GPTJConfig",
    "granite": "GraniteConfig",
    "llama": "LlamaConfig",
    "ministral3": "Ministral3Config",
    "mistral": "MistralConfig",
    "mixtral": "MixtralConfig",
    "mpt": "MptConfig",
    "nemotron": "NemotronConfig",
    "olmo": "OlmoConfig",
    "olmo2": "Olmo2Config",
    "olmo3": "Olmo3Config",
    "opt": "OPTConfig",
    "phi": "PhiConfig",
    "phi3": "Phi3Config",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "qwen3_moe": "Qwen3MoeConfig",
    "seed_oss": "SeedOssConfig",
    "smollm3": "SmolLM3Config",
    "stablelm": "StableLmConfig",
    "starcoder2": "Starcoder2Config",
}
# Sizes that a class calls otherwise than Llama's.
_GPT = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
}
_GPT_INNER = {**_GPT, "intermediate_size": "n_inner"}
_RENAMED = {
    "bloom": {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    "gpt1": _GPT,
    "gpt2": _GPT_INNER,
    "gpt_bigcode": _GPT_INNER,
    "gpt_neo": {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    "gptj": _GPT_INNER,
    "mpt": {
        "max_position_embeddings": "max_seq_len",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    },
    "opt": {"intermediate_size": "ffn_dim"},
}
_COUNT_KEYS = {"qwen3_moe": "num_experts", "deepseek_v2": "n_routed_experts"}
_COUNT_KEYS["deepseek_v3"] = _COUNT_KEYS["deepseek_v2"]


def transformers_config(spec: ModelSpec) -> Any:
    """The same shape as the config class of transformers that the family's models have."""
    import transformers

    facts = _usual(spec) | _own(spec)
    for ours, theirs in _RENAMED.get(spec.family, {}).items():
        facts[theirs] = facts.pop(ours)
    return getattr(transformers, CLASSES[spec.family])(**facts)


def _usual(spec: ModelSpec) -> dict[str, Any]:
    attention = spec.attention
    facts: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.mlp.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": attention.num_query_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "max_position_embeddings": spec.max_positions,
        "tie_word_embeddings": spec.tied_unembedding,
        "hidden_act": _ACTIVATIONS[spec.mlp.activation],
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    }
    if spec.local_attention is not None:
        facts |= _gemma4(spec, spec.local_attention)
    if spec.family in ("falcon", *_RENAMED) or attention.latent is not None:
        del facts["head_dim"]  # these state it otherwise
    if any(spec.windows):
        facts["sliding_window"] = max(spec.windows)
    if attention.latent is not None:
        facts |= {
            "kv_lora_rank": attention.latent.kv_rank,
            "q_lora_rank": attention.latent.query_rank or None,
            "qk_rope_head_dim": attention.latent.rope_dim,
            "qk_nope_head_dim": attention.head_dim - attention.latent.rope_dim,
            "v_head_dim": attention.latent.value_dim,
        }
    return facts | _experts(spec)


def _experts(spec: ModelSpec) -> dict[str, Any]:
    experts = spec.experts
    if experts is None:
        return {}
    facts = {
        _COUNT_KEYS.get(spec.family, "num_local_experts"): experts.count,
        "num_experts_per_tok": experts.chosen,
    }
    if spec.family not in ("mixtral", "gpt_oss"):
        facts["moe_intermediate_size"] = experts.intermediate_size
    if spec.attention.latent is not None:
        facts["n_shared_experts"] = experts.shared_size // experts.intermediate_size
        facts["first_k_dense_replace"] = experts.num_dense_layers
    return facts


def _gemma4(spec: ModelSpec, local: AttentionSpec) -> dict[str, Any]:
    return {
        "num_key_value_heads": local.num_kv_heads,
        "head_dim": local.head_dim,
        "num_global_key_value_heads": spec.attention.num_kv_heads,
        "global_head_dim": spec.attention.head_dim,
        "attention_k_eq_v": spec.attention.values_are_keys,
        "hidden_size_per_layer_input": spec.layer_input.size if spec.layer_input else 0,
        "num_kv_shared_layers": spec.num_kv_shared_layers,
        "use_double_wide_mlp": bool(spec.shared_intermediate_size),
        "layer_types": [
            "sliding_attention" if window else "full_attention" for window in spec.windows
        ],
    }


def _falcon(spec: ModelSpec) -> dict[str, Any]:
    kv_heads = spec.attention.num_kv_heads
    return {
        "activation": _ACTIVATIONS[spec.mlp.activation],
        "ffn_hidden_size": spec.mlp.intermediate_size,
        "num_kv_heads": kv_heads,
        "multi_query": kv_heads == 1,
        "bias": spec.attention.qkv_bias,
        "alibi": spec.position is PositionKind.ALIBI,
        "parallel_attn": spec.parallel is not ParallelBlock.NONE,
        "new_decoder_architecture": spec.parallel is ParallelBlock.TWO_NORMS,
    }


def _own(spec: ModelSpec) -> dict[str, Any]:
    """What a family's class says beside the sizes that all have."""
    partial = {"partial_rotary_factor": spec.rope.dim / spec.attention.head_dim}
    own: dict[str, dict[str, Any]] = {
        "cohere": {"use_qk_norm": spec.attention.qk_norm is not QkNorm.NONE},
        "falcon": _falcon(spec),
        "glm4": {**partial, "attention_bias": spec.attention.qkv_bias},
        "gpt_neo": {"attention_types": [[["global", "local"], spec.num_layers // 2]]},
        "gptj": {"rotary_dim": spec.rope.dim},
        "opt": {"word_embed_proj_dim": spec.hidden_size},
        "phi": partial,
        "seed_oss": {"attention_bias": spec.attention.qkv_bias},
        "stablelm": {**partial, "use_qkv_bias": spec.attention.qkv_bias},
    }
    if spec.family == "exaone4" and not any(spec.windows):
        return {"sliding_window": None, "layer_types": ["full_attention"] * spec.num_layers}
    return own.get(spec.family, {})

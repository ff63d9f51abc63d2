"""Parameter counts as they were published, and how transformers writes the presets' shapes."""

from __future__ import annotations

from typing import Any

from weights.spec import Activation, ModelSpec, PositionKind

# Totals of every parameter, tied tables once: model cards, papers, or the files' own headers.
PARAMETERS = {
    "gpt-1": 116_534_784,
    "gpt-2-small": 124_439_808,
    "gpt-2-medium": 354_823_168,
    "gpt-2-large": 774_030_080,
    "gpt-2-xl": 1_557_611_200,
    "llama-1-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-1-33b": 32_528_943_616,
    "llama-1-65b": 65_285_660_672,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "phi-2": 2_779_683_840,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
}

# (published, how far off a rounded figure may be)
ROUNDED = {
    "gpt-1": (117e6, 0.005),
    "mixtral-8x7b": (46.7e9, 0.001),
    "mixtral-8x22b": (141e9, 0.005),
    "palm-540b": (540.35e9, 0.0001),
    "qwen3-235b-a22b": (235e9, 0.001),
    "gemma-3-27b": (27e9, 0.01),
}

_ACTIVATIONS = {Activation.SILU: "silu", Activation.GELU_TANH: "gelu_pytorch_tanh"}


def transformers_config(spec: ModelSpec) -> Any:
    """The same shape as the config class of transformers that the family's models have."""
    import transformers

    if spec.position is PositionKind.LEARNED:
        return _learned(spec, transformers)
    classes = {
        "llama": "LlamaConfig",
        "mistral": "MistralConfig",
        "mixtral": "MixtralConfig",
        "qwen2": "Qwen2Config",
        "qwen3": "Qwen3Config",
        "qwen3_moe": "Qwen3MoeConfig",
        "gemma": "GemmaConfig",
        "gemma2": "Gemma2Config",
        "gemma3": "Gemma3TextConfig",
        "phi": "PhiConfig",
    }
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
        "pad_token_id": 0,
    }
    if spec.family == "phi":
        facts["partial_rotary_factor"] = spec.rope.dim / attention.head_dim
    if any(spec.windows):
        facts["sliding_window"] = max(spec.windows)
    if spec.experts is not None:
        facts["num_experts_per_tok"] = spec.experts.chosen
        mixtral = spec.family == "mixtral"
        facts["num_local_experts" if mixtral else "num_experts"] = spec.experts.count
        if not mixtral:
            facts["moe_intermediate_size"] = spec.experts.intermediate_size
    return getattr(transformers, classes[spec.family])(**facts)


def _learned(spec: ModelSpec, transformers: Any) -> Any:
    classes = {"gpt1": transformers.OpenAIGPTConfig, "gpt2": transformers.GPT2Config}
    return classes[spec.family](
        vocab_size=spec.vocab_size,
        n_positions=spec.max_positions,
        n_embd=spec.hidden_size,
        n_layer=spec.num_layers,
        n_head=spec.attention.num_query_heads,
        tie_word_embeddings=spec.tied_unembedding,
    )

"""ModelSpec -> the config.json that means it: the inverse of a family's reader. No torch."""

from __future__ import annotations

from typing import Any

from weights.formats import get_format
from weights.spec import Activation, ModelSpec, RopeScaling, RopeSpec

_ACTIVATIONS = {
    Activation.SILU: "silu",
    Activation.GELU_TANH: "gelu_pytorch_tanh",
    Activation.GELU_ERF: "gelu",
    Activation.RELU: "relu",
}


def config_for(spec: ModelSpec, format: str) -> dict[str, Any]:
    """A config.json for parameters held in ``format``. Raises ValueError for an unknown family."""
    writers = {"llama": _llama, "gpt2": _gpt2, "bloom": _bloom}
    if spec.family not in writers:
        raise ValueError(f"unknown family {spec.family!r}")
    eos = list(spec.eos_token_ids)
    return {
        "architectures": [spec.architecture],
        "model_type": spec.family,
        "vocab_size": spec.vocab_size,
        "tie_word_embeddings": spec.tied_unembedding,
        "torch_dtype": get_format(format).torch_name,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        **writers[spec.family](spec),
    }


def _llama(spec: ModelSpec) -> dict[str, Any]:
    attention = spec.attention
    return {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": attention.num_query_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "attention_bias": attention.qkv_bias,
        "intermediate_size": spec.mlp.intermediate_size,
        "hidden_act": _ACTIVATIONS[spec.mlp.activation],
        "mlp_bias": spec.mlp.bias,
        "rms_norm_eps": spec.norm.epsilon,
        "max_position_embeddings": spec.max_positions,
        "rope_theta": spec.rope.theta,
        "rope_scaling": _rope_scaling(spec.rope),
    }


def _rope_scaling(rope: RopeSpec) -> dict[str, Any] | None:
    if rope.scaling is RopeScaling.NONE:
        return None
    fields: dict[str, Any] = {"rope_type": rope.scaling.value, "factor": rope.factor}
    if rope.scaling in (RopeScaling.LLAMA3, RopeScaling.YARN):
        fields["original_max_position_embeddings"] = rope.original_max_positions
    if rope.scaling is RopeScaling.LLAMA3:
        fields["low_freq_factor"] = rope.low_freq_factor
        fields["high_freq_factor"] = rope.high_freq_factor
    if rope.scaling is RopeScaling.YARN:
        fields |= {
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "truncate": rope.truncate,
        }
        if rope.attention_factor is not None:
            fields["attention_factor"] = rope.attention_factor
    return fields


def _gpt2(spec: ModelSpec) -> dict[str, Any]:
    return {
        "n_embd": spec.hidden_size,
        "n_layer": spec.num_layers,
        "n_head": spec.attention.num_query_heads,
        "n_inner": spec.mlp.intermediate_size,
        "n_positions": spec.max_positions,
        "scale_attn_weights": spec.attention.scale != 1.0,
        "activation_function": _ACTIVATIONS[spec.mlp.activation],
        "layer_norm_epsilon": spec.norm.epsilon,
    }


def _bloom(spec: ModelSpec) -> dict[str, Any]:
    return {
        "hidden_size": spec.hidden_size,
        "n_layer": spec.num_layers,
        "n_head": spec.attention.num_query_heads,
        "seq_length": spec.max_positions,
        "layer_norm_epsilon": spec.norm.epsilon,
    }

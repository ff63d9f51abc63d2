"""Llama 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783) and models of the same shape,
such as TinyLlama and SmolLM: RMS norm before each block, rotary positions, gated MLP."""

from __future__ import annotations

from weights.families.base import GELU_NAMES, UNEMBEDDING_TENSOR, Family, Skip, Source
from weights.families.facts import MAX_LAYERS, ConfigReader
from weights.families.keys import words
from weights.families.rope import read_rope
from weights.spec import (
    Activation,
    AttentionSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    PositionKind,
)

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    **GELU_NAMES,
    "relu": Activation.RELU,
}


def _read(facts: ConfigReader) -> ModelSpec:
    hidden = facts.integer("hidden_size")
    vocab_size = facts.integer("vocab_size")
    max_positions = facts.integer("max_position_embeddings", 2048, high=1 << 31)
    attention = _attention(facts, hidden)
    # How the training sliced its matrix products: the same sums, which transformers computes whole.
    facts.integer("pretraining_tp", 1)
    bos = facts.token_ids("bos_token_id", vocab_size, 1)
    return ModelSpec(
        family="llama",
        architecture=facts.architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=facts.integer("num_hidden_layers", high=MAX_LAYERS),
        attention=attention,
        mlp=MlpSpec(
            intermediate_size=facts.integer("intermediate_size"),
            activation=facts.choice("hidden_act", _ACTIVATIONS, "silu"),
            gated=True,
            bias=facts.flag("mlp_bias", False),
        ),
        norm=NormSpec(NormKind.RMS, facts.number("rms_norm_eps", 1e-6, high=1.0)),
        position=PositionKind.ROTARY,
        max_positions=max_positions,
        tied_unembedding=facts.flag("tie_word_embeddings", False),
        parameter_dtype=facts.parameter_format(),
        rope=read_rope(facts, head_dim=attention.head_dim, max_positions=max_positions),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=facts.token_ids("eos_token_id", vocab_size, 2),
    )


def _attention(facts: ConfigReader, hidden: int) -> AttentionSpec:
    heads = facts.integer("num_attention_heads", high=1 << 16)
    kv_heads = facts.integer("num_key_value_heads", heads, high=1 << 16)
    if heads % kv_heads:
        raise facts.error(
            "num_attention_heads", f"{heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if "head_dim" not in facts and hidden % heads:
        raise facts.error(
            "hidden_size", f"{hidden} is not a multiple of num_attention_heads {heads}"
        )
    head_dim = facts.integer("head_dim", max(hidden // heads, 1), high=1 << 16)
    bias = facts.flag("attention_bias", False)
    return AttentionSpec(
        num_query_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qkv_bias=bias,
        output_bias=bias,
    )


def _linear(theirs: str, ours: str) -> tuple[Source, Source]:
    """Weight and bias of one projection of layer ``{i}``."""
    return (
        Source(f"model.layers.{{i}}.{theirs}.weight", (f"layers.{{i}}.{ours}.weight",)),
        Source(f"model.layers.{{i}}.{theirs}.bias", (f"layers.{{i}}.{ours}.bias",)),
    )


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    other_names=("LLaMAForCausalLM", "LlamaModel"),
    model_type="llama",
    prefix="model.",
    sources=(
        Source("model.embed_tokens.weight", ("embedding.weight",)),
        Source("model.layers.{i}.input_layernorm.weight", ("layers.{i}.attention_norm.weight",)),
        *_linear("self_attn.q_proj", "attention.query"),
        *_linear("self_attn.k_proj", "attention.key"),
        *_linear("self_attn.v_proj", "attention.value"),
        *_linear("self_attn.o_proj", "attention.output"),
        Source("model.layers.{i}.post_attention_layernorm.weight", ("layers.{i}.mlp_norm.weight",)),
        *_linear("mlp.gate_proj", "mlp.gate"),
        *_linear("mlp.up_proj", "mlp.up"),
        *_linear("mlp.down_proj", "mlp.down"),
        Source("model.norm.weight", ("final_norm.weight",)),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
    ),
    skips=(
        Skip("model.layers.{i}.self_attn.rotary_emb.inv_freq", "rotary frequencies are computed"),
        Skip("model.rotary_emb.inv_freq", "rotary frequencies are computed"),
        Skip("model.position_ids", "positions are counted"),
        Skip("model.embeddings.position_ids", "positions are counted"),
    ),
    harmless=words("is_llama_config"),
    read=_read,
)

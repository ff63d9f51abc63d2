"""Gemma 3, its text part (arXiv 2503.19786): Gemma 2 with norms of queries and keys for the caps, a
window in five of six layers, and rotary frequencies of their own in these."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.keys import words
from weights.config.rope import RopeDefaults, read_ropes
from weights.spec import ModelSpec, NormPlacement, QkNorm

_ROPE = RopeDefaults(theta=1e6)


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(
        facts,
        kv_heads=4,
        head_dim=256,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QkNorm.HEAD,
        scale=facts.number("query_pre_attn_scalar", 256.0) ** -0.5,
        soft_cap=facts.cap("attn_logit_softcapping", None),
    )
    max_positions = decoders.max_positions(facts, 131072)
    facts.only("use_bidirectional_attention", False, "a decoder looks back alone")
    rope, local_rope = read_ropes(
        facts,
        head_dim=attention.head_dim,
        max_positions=max_positions,
        defaults=_ROPE,
        local_theta_key="rope_local_base_freq",
    )
    every = facts.integer("sliding_window_pattern", 6)
    return decoders.read_decoder(
        facts,
        family="gemma3",
        attention=attention,
        mlp=decoders.read_mlp(facts, key="hidden_activation", default="gelu_pytorch_tanh"),
        norm=decoders.rms_norm(facts, placement=NormPlacement.BOTH, unit_offset=True),
        max_positions=max_positions,
        tied=True,
        rope=rope,
        local_rope=local_rope,
        windows=decoders.read_windows(facts, slides=lambda i: (i + 1) % every != 0, default=4096),
        embedding_scale=facts.integer("hidden_size") ** 0.5,
        rounded_embedding_scale=True,
        logit_soft_cap=facts.cap("final_logit_softcapping", None),
        bos=2,
        eos=1,
    )


FAMILY = Family(
    name="gemma3",
    architecture="Gemma3ForCausalLM",
    other_names=("Gemma3TextModel",),
    model_type="gemma3_text",
    prefix="model.",
    sources=decoders.names(
        *decoders.FOUR_NORMS, *decoders.ATTENTION, *decoders.QK_NORMS, *decoders.GATED_MLP
    ),
    skips=decoders.SKIPS,
    harmless=words("cache_implementation"),
    read=_read,
)

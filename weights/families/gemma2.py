"""Gemma 2 (arXiv 2408.00118): Gemma with norms around every block, caps of scores and logits, and a
window in every other layer."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.keys import words
from weights.spec import ModelSpec, NormPlacement


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(
        facts,
        kv_heads=4,
        head_dim=256,
        qkv_bias=bias,
        output_bias=bias,
        scale=facts.number("query_pre_attn_scalar", 256.0) ** -0.5,
        soft_cap=facts.cap("attn_logit_softcapping", 50.0),
    )
    facts.only("use_bidirectional_attention", False, "a decoder looks back alone")
    return decoders.read_decoder(
        facts,
        family="gemma2",
        attention=attention,
        mlp=decoders.read_mlp(facts, key="hidden_activation", default="gelu_pytorch_tanh"),
        norm=decoders.rms_norm(facts, placement=NormPlacement.BOTH, unit_offset=True),
        max_positions=8192,
        tied=True,
        windows=decoders.read_windows(facts, slides=lambda i: i % 2 == 0, default=4096),
        embedding_scale=facts.integer("hidden_size") ** 0.5,
        rounded_embedding_scale=True,
        logit_soft_cap=facts.cap("final_logit_softcapping", 30.0),
        bos=2,
        eos=1,
    )


FAMILY = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    other_names=("Gemma2Model",),
    model_type="gemma2",
    prefix="model.",
    sources=decoders.names(*decoders.FOUR_NORMS, *decoders.ATTENTION, *decoders.GATED_MLP),
    skips=decoders.SKIPS,
    harmless=words("hidden_act cache_implementation"),
    read=_read,
)

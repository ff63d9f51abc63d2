"""Command R and Aya (Cohere 2024): attention and MLP side by side behind one Layer norm without a
bias, neighbouring rotary pairs, scaled logits. R+ normalises each head of queries and keys."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec, NormKind, NormSpec, ParallelBlock, QkNorm

_ROPE = RopeDefaults(theta=500000.0, interleaved=True)


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    qk_norm = QkNorm.EACH_HEAD if facts.flag("use_qk_norm", False) else QkNorm.NONE
    attention = decoders.read_attention(facts, qkv_bias=bias, output_bias=bias, qk_norm=qk_norm)
    return decoders.read_decoder(
        facts,
        family="cohere",
        attention=attention,
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_eps", 1e-5, high=1.0), bias=False),
        max_positions=8192,
        tied=True,
        rope=_ROPE,
        parallel=ParallelBlock.SHARED_NORM,
        logit_scale=facts.number("logit_scale", 0.0625),
        bos=5,
        eos=255001,
    )


FAMILY = Family(
    name="cohere",
    architecture="CohereForCausalLM",
    other_names=("CohereModel",),
    model_type="cohere",
    prefix="model.",
    sources=decoders.names(
        *decoders.in_layer("input_layernorm", "attention_norm"),
        *decoders.ATTENTION,
        *decoders.QK_NORMS,
        *decoders.GATED_MLP,
    ),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)

"""Phi 1, 1.5 and 2 (arXiv 2306.11644, 2309.05463): attention and an MLP without a gate side by side
behind one Layer norm, part of each head turns, biases everywhere, the logits' too."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import UNEMBEDDING_TENSOR, Family, Source
from weights.config.keys import words
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec, NormKind, NormSpec, ParallelBlock, QkNorm

_ROPE = RopeDefaults(partial=0.5)


def _read(facts: ConfigReader) -> ModelSpec:
    normed = facts.flag("qk_layernorm", False)
    attention = decoders.read_attention(
        facts,
        qkv_bias=True,
        output_bias=True,
        qk_norm=QkNorm.HEAD if normed else QkNorm.NONE,
        qk_norm_bias=normed,
    )
    return decoders.read_decoder(
        facts,
        family="phi",
        attention=attention,
        mlp=decoders.read_mlp(facts, default="gelu_new", gated=False, bias=True),
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_eps", 1e-5, high=1.0)),
        max_positions=2048,
        rope=_ROPE,
        parallel=ParallelBlock.SHARED_NORM,
        unembedding_bias=True,
        bos=1,
        eos=2,
    )


FAMILY = Family(
    name="phi",
    architecture="PhiForCausalLM",
    other_names=("PhiModel",),
    model_type="phi",
    prefix="model.",
    sources=(
        Source("model.embed_tokens.weight", ("embedding.weight",)),
        *decoders.in_layer("input_layernorm", "attention_norm"),
        *decoders.in_layer("self_attn.q_proj", "attention.query"),
        *decoders.in_layer("self_attn.k_proj", "attention.key"),
        *decoders.in_layer("self_attn.v_proj", "attention.value"),
        *decoders.in_layer("self_attn.q_layernorm", "attention.query_norm"),
        *decoders.in_layer("self_attn.k_layernorm", "attention.key_norm"),
        *decoders.in_layer("self_attn.dense", "attention.output"),
        *decoders.in_layer("mlp.fc1", "mlp.up"),
        *decoders.in_layer("mlp.fc2", "mlp.down"),
        *decoders.linear("model.final_layernorm", "final_norm"),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
        Source("lm_head.bias", ("unembedding.bias",)),
    ),
    skips=decoders.SKIPS,
    harmless=words("resid_pdrop embd_pdrop"),
    read=_read,
)

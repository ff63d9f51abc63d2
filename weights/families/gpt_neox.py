"""GPT-NeoX 20B and Pythia (arXiv 2204.06745, 2304.01373): attention and MLP side by side, each
behind a Layer norm of its own, or one by one; part of each head turns. Queries, keys and values are
fused by head."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import UNEMBEDDING_TENSOR, Family, Skip, Source
from weights.config.keys import words
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec, NormKind, NormSpec, ParallelBlock

_LAYERS = "gpt_neox.layers"


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", True)
    parallel = facts.flag("use_parallel_residual", True)
    return decoders.read_decoder(
        facts,
        family="gpt_neox",
        attention=decoders.read_equal_heads(
            facts,
            hidden_key="hidden_size",
            heads_key="num_attention_heads",
            qkv_bias=bias,
            output_bias=bias,
        ),
        mlp=decoders.read_mlp(facts, default="gelu", gated=False, bias=True),
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_eps", 1e-5, high=1.0)),
        max_positions=2048,
        # The first two keys are the published files'; those of transformers 5 win.
        rope=RopeDefaults(
            theta=facts.number("rotary_emb_base", 10000.0, above=1.0),
            partial=facts.number("rotary_pct", 0.25, high=1.0),
        ),
        parallel=ParallelBlock.TWO_NORMS if parallel else ParallelBlock.NONE,
        bos=0,
        eos=2,
    )


def _layer(theirs: str, ours: str) -> tuple[Source, Source]:
    return decoders.in_layer(theirs, ours, layers=_LAYERS)


FAMILY = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    other_names=("GPTNeoXModel",),
    model_type="gpt_neox",
    prefix="gpt_neox.",
    sources=(
        Source("gpt_neox.embed_in.weight", ("embedding.weight",)),
        *_layer("input_layernorm", "attention_norm"),
        *decoders.heads_in_layer("attention.query_key_value", _LAYERS),
        *_layer("attention.dense", "attention.output"),
        *_layer("post_attention_layernorm", "mlp_norm"),
        *_layer("mlp.dense_h_to_4h", "mlp.up"),
        *_layer("mlp.dense_4h_to_h", "mlp.down"),
        *decoders.linear("gpt_neox.final_layer_norm", "final_norm"),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
    ),
    skips=(
        Skip(f"{_LAYERS}.{{i}}.attention.bias", "the causal mask is computed"),
        Skip(f"{_LAYERS}.{{i}}.attention.masked_bias", "the causal mask is computed"),
        Skip(f"{_LAYERS}.{{i}}.attention.rotary_emb.inv_freq", "rotary frequencies are computed"),
    ),
    harmless=words("classifier_dropout"),
    read=_read,
    sizes={
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
    },
    renames=(("embed_out.", "lm_head."),),
)

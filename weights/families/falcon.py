"""Falcon 7B to 180B, 2 and RW (arXiv 2311.16867, 2306.01116): attention and MLP side by side behind
one Layer norm or one each, or one by one; rotary positions, or ALiBi. Falcon 3 is Llama's.

The fused matrix has each key-value head's queries, then its key and its value. ALiBi's bias is
scaled together with the scores. transformers rounds it to bfloat16, in any format; here it is
exact, so that answers agree where bfloat16 holds the slopes and the positions.
"""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import UNEMBEDDING_TENSOR, Family, Source
from weights.config.rope import LLAMA
from weights.spec import (
    AlibiSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    ParallelBlock,
    PositionKind,
)

_LAYERS = "transformer.h"


def _read(facts: ConfigReader) -> ModelSpec:
    hidden_key = decoders.either(facts, "hidden_size", "n_embed")
    heads_key = decoders.either(facts, "num_attention_heads", "n_head")
    hidden, bias = facts.integer(hidden_key), facts.flag("bias", False)
    attention = decoders.read_equal_heads(
        facts,
        hidden_key=hidden_key,
        heads_key=heads_key,
        kv_heads=_kv_heads(facts, facts.integer(heads_key)),
        qkv_bias=bias,
        output_bias=bias,
    )
    inner = facts.integer("ffn_hidden_size", 4 * hidden)
    facts.only("ff_factor", inner // hidden, "ffn_hidden_size says how wide the MLP is")
    facts.only("apply_residual_connection_post_layernorm", False, "the stream is not normalised")
    alibi = facts.flag("alibi", False)
    if alibi:
        for key in ("rope_parameters", "rope_scaling", "rope_theta"):
            facts.raw(key)  # written whether layers turn or not
    return decoders.read_decoder(
        facts,
        family="falcon",
        attention=attention,
        mlp=MlpSpec(
            intermediate_size=inner,
            activation=facts.choice("activation", decoders.ACTIVATIONS, "gelu"),
            gated=False,
            bias=bias,
        ),
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_epsilon", 1e-5, high=1.0)),
        position=PositionKind.ALIBI if alibi else PositionKind.ROTARY,
        max_positions=2048,
        rope=LLAMA,
        alibi=AlibiSpec(factor=attention.scale),
        parallel=_parallel(facts),
        tied=True,
        hidden_key=hidden_key,
        layers_key=decoders.either(facts, "num_hidden_layers", "n_layer"),
        bos=11,
        eos=11,
    )


def _kv_heads(facts: ConfigReader, heads: int) -> int:
    """Of the newer design as many as the file says; of the older one, or as many as queries."""
    key = decoders.either(facts, "num_kv_heads", "n_head_kv")
    multi_query = facts.flag("multi_query", True)
    if facts.flag("new_decoder_architecture", False):
        kv_heads = facts.integer(key, heads)
        if heads % kv_heads:
            raise facts.error(key, f"is {kv_heads}, of which {heads} query heads are no multiple")
        return kv_heads
    if multi_query:
        return 1
    facts.only(key, heads, "without multi_query each query head has its own")
    return heads


def _parallel(facts: ConfigReader) -> ParallelBlock:
    norms, newer = "num_ln_in_parallel_attn", facts.flag("new_decoder_architecture", False)
    if newer:
        facts.only("parallel_attn", True, "the newer design is parallel")
        two = facts.integer(norms, 2, high=2) == 2
        return ParallelBlock.TWO_NORMS if two else ParallelBlock.SHARED_NORM
    facts.only(norms, 1, "the older design has one")
    side_by_side = facts.flag("parallel_attn", True)
    return ParallelBlock.SHARED_NORM if side_by_side else ParallelBlock.NONE


def _layer(theirs: str, ours: str) -> tuple[Source, Source]:
    return decoders.in_layer(theirs, ours, layers=_LAYERS)


FAMILY = Family(
    name="falcon",
    architecture="FalconForCausalLM",
    other_names=("FalconModel",),
    model_type="falcon",
    prefix="transformer.",
    sources=(
        Source("transformer.word_embeddings.weight", ("embedding.weight",)),
        *_layer("input_layernorm", "attention_norm"),
        *decoders.heads_in_layer("self_attention.query_key_value", _LAYERS),
        *_layer("self_attention.dense", "attention.output"),
        *_layer("post_attention_layernorm", "mlp_norm"),
        *_layer("mlp.dense_h_to_4h", "mlp.up"),
        *_layer("mlp.dense_4h_to_h", "mlp.down"),
        *decoders.linear("transformer.ln_f", "final_norm"),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
    ),
    skips=(),
    harmless=frozenset(),
    read=_read,
    sizes={
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
    },
    # Of those with two norms.
    synonyms=((".ln_attn.", ".input_layernorm."), (".ln_mlp.", ".post_attention_layernorm.")),
    own_code=frozenset({"modeling_falcon.FalconForCausalLM"}),
)

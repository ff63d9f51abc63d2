"""BLOOM (arXiv 2211.05100): ALiBi, a Layer norm of the embedding, and queries, keys and values
fused by head."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import UNEMBEDDING_TENSOR, Family, Source
from weights.config.keys import words
from weights.spec import Activation, MlpSpec, ModelSpec, NormKind, NormSpec, PositionKind

_LAYERS = "transformer.h"


def _read(facts: ConfigReader) -> ModelSpec:
    hidden_key = decoders.either(facts, "hidden_size", "n_embed")
    hidden = facts.integer(hidden_key)
    facts.only("n_inner", 4 * hidden, "the MLP is four times as wide as the stream")
    facts.only("apply_residual_connection_post_layernorm", False, "the stream is not normalised")
    return decoders.read_decoder(
        facts,
        family="bloom",
        attention=decoders.read_equal_heads(
            facts,
            hidden_key=hidden_key,
            heads_key=decoders.either(facts, "n_head", "num_attention_heads"),
            qkv_bias=True,
            output_bias=True,
        ),
        mlp=MlpSpec(4 * hidden, Activation.GELU_TANH, gated=False, bias=True),
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_epsilon", 1e-5, high=1.0)),
        position=PositionKind.ALIBI,
        # What it was trained with: a bias has no end.
        max_positions=2048,
        positions_key="seq_length",
        embedding_norm=True,
        tied=True,
        hidden_key=hidden_key,
        layers_key=decoders.either(facts, "n_layer", "num_hidden_layers"),
        bos=1,
        eos=2,
    )


def _layer(theirs: str, ours: str) -> tuple[Source, Source]:
    return decoders.in_layer(theirs, ours, layers=_LAYERS)


FAMILY = Family(
    name="bloom",
    architecture="BloomForCausalLM",
    other_names=("BloomModel",),
    model_type="bloom",
    prefix="transformer.",
    sources=(
        Source("transformer.word_embeddings.weight", ("embedding.weight",)),
        *decoders.linear("transformer.word_embeddings_layernorm", "embedding_norm"),
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
    # ``offset_alibi``, ``masked_softmax_fusion`` and the like told the training's kernels; products
    # cut for its ranks (``pretraining_tp``, ``slow_but_exact``) are summed whole.
    harmless=words(
        """
        attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi
        skip_bias_add skip_bias_add_qkv pretraining_tp slow_but_exact
        """
    ),
    read=_read,
    sizes={"vocab_size": 512, "hidden_size": 64, "n_layer": 8, "n_head": 4},
)

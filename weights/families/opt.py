"""OPT (arXiv 2205.01068): Layer norm before each block, learned positions that begin at row 2 of
their table, a ReLU MLP. The 350m normalises the sums behind its blocks instead, and its embedding
is narrower than its layers."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import UNEMBEDDING_TENSOR, Family, Skip, Source
from weights.config.keys import words
from weights.spec import MlpSpec, ModelSpec, NormKind, NormPlacement, NormSpec, PositionKind

_OFFSET = 2  # rows before the first position's


def _read(facts: ConfigReader) -> ModelSpec:
    hidden, bias = facts.integer("hidden_size"), facts.flag("enable_bias", True)
    facts.only("_remove_final_layer_norm", False, "the last sum is normalised")
    affine = facts.flag("layer_norm_elementwise_affine", True)
    before = facts.flag("do_layer_norm_before", True)
    embedding_size = facts.integer("word_embed_proj_dim", hidden)
    return decoders.read_decoder(
        facts,
        family="opt",
        attention=decoders.read_equal_heads(
            facts,
            hidden_key="hidden_size",
            heads_key="num_attention_heads",
            qkv_bias=bias,
            output_bias=bias,
        ),
        mlp=MlpSpec(
            intermediate_size=facts.integer("ffn_dim"),
            activation=facts.choice("activation_function", decoders.ACTIVATIONS, "relu"),
            gated=False,
            bias=bias,
        ),
        norm=NormSpec(
            NormKind.LAYER,
            1e-5,
            NormPlacement.PRE if before else NormPlacement.POST,
            weight=affine,
        ),
        position=PositionKind.LEARNED,
        max_positions=2048,
        position_offset=_OFFSET,
        embedding_size=embedding_size if embedding_size != hidden else 0,
        tied=True,
        bos=2,
        eos=2,
    )


def _layer(theirs: str, ours: str) -> tuple[Source, Source]:
    return decoders.in_layer(theirs, ours, layers="model.decoder.layers")


FAMILY = Family(
    name="opt",
    architecture="OPTForCausalLM",
    other_names=("OPTModel",),
    model_type="opt",
    prefix="model.",
    sources=(
        Source("model.decoder.embed_tokens.weight", ("embedding.weight",)),
        Source("model.decoder.embed_positions.weight", ("position_embedding.weight",)),
        Source("model.decoder.project_in.weight", ("embedding_projection.weight",)),
        *_layer("self_attn_layer_norm", "attention_norm"),
        *_layer("self_attn.q_proj", "attention.query"),
        *_layer("self_attn.k_proj", "attention.key"),
        *_layer("self_attn.v_proj", "attention.value"),
        *_layer("self_attn.out_proj", "attention.output"),
        *_layer("final_layer_norm", "mlp_norm"),
        *_layer("fc1", "mlp.up"),
        *_layer("fc2", "mlp.down"),
        *decoders.linear("model.decoder.final_layer_norm", "final_norm"),
        Source("model.decoder.project_out.weight", ("unembedding_projection.weight",)),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
    ),
    skips=(Skip("model.decoder.version", "a mark of the file's age"),),
    harmless=words("layerdrop init_std activation_dropout"),
    read=_read,
    sizes={
        "vocab_size": 512,
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
    },
)

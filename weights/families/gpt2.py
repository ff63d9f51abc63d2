"""GPT-2 (Radford et al. 2019): Layer norm before each block, learned positions, plain MLP.

Its projections are published as [in, out] ("Conv1D"), query, key and value in one tensor.
"""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import MAX_LAYERS, ConfigReader
from weights.config.family import GELU_NAMES, UNEMBEDDING_TENSOR, Family, Source
from weights.config.keys import words
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
    **GELU_NAMES,
    "relu": Activation.RELU,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
}

# The generic names of these sizes; a folder that has both must mean the same.
_SYNONYMS = {
    "n_ctx": "n_positions",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def _read(facts: ConfigReader) -> ModelSpec:
    hidden = facts.integer("n_embd")
    heads = facts.integer("n_head", high=1 << 16)
    if hidden % heads:
        raise facts.error("n_embd", f"{hidden} is not a multiple of n_head {heads}")
    head_dim = hidden // heads
    _refuse_unserved(facts)
    vocab_size = facts.integer("vocab_size")
    bos = facts.token_ids("bos_token_id", vocab_size, 50256)
    return ModelSpec(
        family="gpt2",
        architecture=facts.architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=facts.integer("n_layer", high=MAX_LAYERS),
        attention=AttentionSpec(
            num_query_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            scale=head_dim**-0.5 if facts.flag("scale_attn_weights", True) else 1.0,
            qkv_bias=True,
            output_bias=True,
        ),
        mlp=MlpSpec(
            intermediate_size=facts.integer("n_inner", 4 * hidden),
            activation=facts.choice("activation_function", _ACTIVATIONS, "gelu_new"),
            gated=False,
            bias=True,
        ),
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_epsilon", 1e-5, high=1.0)),
        position=PositionKind.LEARNED,
        max_positions=facts.integer("n_positions"),
        tied_unembedding=facts.flag("tie_word_embeddings", True),
        parameter_dtype=facts.parameter_format(),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=facts.token_ids("eos_token_id", vocab_size, 50256),
    )


def _refuse_unserved(facts: ConfigReader) -> None:
    facts.only("scale_attn_by_inverse_layer_idx", False, "every layer has the same scale")
    # Scores and their softmax in float32, scaled first: what attention does here in any format.
    facts.flag("reorder_and_upcast_attn", False)
    facts.only("add_cross_attention", False, "there is no encoder to attend to")
    for synonym, key in _SYNONYMS.items():
        if synonym in facts and facts.integer(synonym) != facts.integer(key):
            raise facts.error(synonym, f"contradicts {key} {facts.integer(key)}")


FAMILY = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    other_names=("GPT2Model",),
    model_type="gpt2",
    prefix="transformer.",
    sources=(
        Source("transformer.wte.weight", ("embedding.weight",)),
        Source("transformer.wpe.weight", ("position_embedding.weight",)),
        *decoders.in_layer("ln_1", "attention_norm", layers="transformer.h"),
        *decoders.conv1d("attn.c_attn", "attention.query", "attention.key", "attention.value"),
        *decoders.conv1d("attn.c_proj", "attention.output"),
        *decoders.in_layer("ln_2", "mlp_norm", layers="transformer.h"),
        *decoders.conv1d("mlp.c_fc", "mlp.up"),
        *decoders.conv1d("mlp.c_proj", "mlp.down"),
        *decoders.linear("transformer.ln_f", "final_norm"),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
    ),
    skips=decoders.GPT_SKIPS,
    harmless=words(
        """
        resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation
        summary_proj_to_labels summary_first_dropout
        """
    ),
    read=_read,
    sizes={"vocab_size": 512, "n_embd": 64, "n_layer": 8, "n_head": 4, "n_positions": 1024},
)

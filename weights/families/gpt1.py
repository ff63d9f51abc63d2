"""GPT-1 (Radford et al. 2018), whose published folder is openai-gpt: learned positions, the sum of
each block's input and output is normalised, and the last such sum is what logits are made of."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import UNEMBEDDING_TENSOR, Family, Source
from weights.config.keys import words
from weights.spec import (
    Activation,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormPlacement,
    NormSpec,
    PositionKind,
)

# "gelu" is the function by tanh here.
_ACTIVATIONS = {
    "gelu": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
}


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_equal_heads(
        facts, hidden_key="n_embd", heads_key="n_head", qkv_bias=True, output_bias=True
    )
    epsilon = facts.number("layer_norm_epsilon", 1e-5, high=1.0)
    positions = facts.integer("n_positions", 512)
    if facts.integer("n_ctx", positions) != positions:
        raise facts.error("n_ctx", f"contradicts n_positions {positions}")
    return decoders.read_decoder(
        facts,
        family="gpt1",
        attention=attention,
        mlp=MlpSpec(
            intermediate_size=4 * facts.integer("n_embd"),
            activation=facts.choice("afn", _ACTIVATIONS, "gelu"),
            gated=False,
            bias=True,
        ),
        norm=NormSpec(NormKind.LAYER, epsilon, NormPlacement.POST),
        position=PositionKind.LEARNED,
        max_positions=512,
        positions_key="n_positions",
        tied=True,
        hidden_key="n_embd",
        layers_key="n_layer",
    )


def _layer(theirs: str, *ours: str) -> tuple[Source, Source]:
    return decoders.in_layer(theirs, *ours, layers="transformer.h")


FAMILY = Family(
    name="gpt1",
    architecture="OpenAIGPTLMHeadModel",
    other_names=("OpenAIGPTModel",),
    model_type="openai-gpt",
    prefix="transformer.",
    sources=(
        Source("transformer.tokens_embed.weight", ("embedding.weight",)),
        Source("transformer.positions_embed.weight", ("position_embedding.weight",)),
        *decoders.conv1d("attn.c_attn", "attention.query", "attention.key", "attention.value"),
        *decoders.conv1d("attn.c_proj", "attention.output"),
        *_layer("ln_1", "attention_norm"),
        *decoders.conv1d("mlp.c_fc", "mlp.up"),
        *decoders.conv1d("mlp.c_proj", "mlp.down"),
        *_layer("ln_2", "mlp_norm"),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
    ),
    skips=decoders.GPT_SKIPS,
    harmless=words(
        """
        resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation
        summary_proj_to_labels summary_first_dropout predict_special_tokens n_special
        """
    ),
    read=_read,
    sizes={"vocab_size": 512, "n_embd": 64, "n_layer": 8, "n_head": 4},
)

"""GPT-J (Wang and Komatsuzaki 2021): attention and MLP side by side behind one Layer norm, the
first channels of each head turn, neighbours as pairs, and the logits have a bias."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import UNEMBEDDING_TENSOR, Family, Skip, Source
from weights.config.keys import words
from weights.spec import MlpSpec, ModelSpec, NormKind, NormSpec, ParallelBlock, RopeSpec


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_equal_heads(facts, hidden_key="n_embd", heads_key="n_head")
    hidden, max_positions = facts.integer("n_embd"), facts.integer("n_positions", 2048)
    dim = facts.integer("rotary_dim", 64, low=2, high=attention.head_dim)
    if dim % 2:
        raise facts.error("rotary_dim", f"is {dim}; channels turn in pairs: it must be even")
    return decoders.read_decoder(
        facts,
        family="gptj",
        attention=attention,
        mlp=MlpSpec(
            intermediate_size=facts.integer("n_inner", 4 * hidden),
            activation=facts.choice("activation_function", decoders.ACTIVATIONS, "gelu_new"),
            gated=False,
            bias=True,
        ),
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_epsilon", 1e-5, high=1.0)),
        max_positions=max_positions,
        positions_key="n_positions",
        rope=RopeSpec(dim=dim, interleaved=True, original_max_positions=max_positions),
        parallel=ParallelBlock.SHARED_NORM,
        unembedding_bias=True,
        hidden_key="n_embd",
        layers_key="n_layer",
        bos=50256,
        eos=50256,
    )


def _layer(theirs: str, ours: str) -> tuple[Source, Source]:
    return decoders.in_layer(theirs, ours, layers="transformer.h")


FAMILY = Family(
    name="gptj",
    architecture="GPTJForCausalLM",
    other_names=("GPTJModel",),
    model_type="gptj",
    prefix="transformer.",
    sources=(
        Source("transformer.wte.weight", ("embedding.weight",)),
        *_layer("ln_1", "attention_norm"),
        *_layer("attn.q_proj", "attention.query"),
        *_layer("attn.k_proj", "attention.key"),
        *_layer("attn.v_proj", "attention.value"),
        *_layer("attn.out_proj", "attention.output"),
        *_layer("mlp.fc_in", "mlp.up"),
        *_layer("mlp.fc_out", "mlp.down"),
        *decoders.linear("transformer.ln_f", "final_norm"),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
        Source("lm_head.bias", ("unembedding.bias",)),
    ),
    skips=(
        *decoders.GPT_SKIPS,
        Skip("transformer.h.{i}.attn.embed_positions", "rotary angles are computed"),
    ),
    harmless=words(
        """
        resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation
        summary_proj_to_labels summary_first_dropout rotary
        scale_attn_weights
        """
    ),
    read=_read,
    sizes={"vocab_size": 512, "n_embd": 512, "n_layer": 8, "n_head": 4},
)

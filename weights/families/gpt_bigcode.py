"""StarCoder 1 and SantaCoder (arXiv 2305.06161, 2301.03988): GPT-2 with one key-value head for all
query heads, or one for each, fused by head; and matrices that are not turned around."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import UNEMBEDDING_TENSOR, Family, Source
from weights.config.keys import words
from weights.spec import MlpSpec, ModelSpec, NormKind, NormSpec, PositionKind


def _read(facts: ConfigReader) -> ModelSpec:
    kv_heads = 1 if facts.flag("multi_query", True) else facts.integer("n_head", high=1 << 16)
    facts.only("num_key_value_heads", kv_heads, "multi_query says whether they are shared")
    facts.only("add_cross_attention", False, "there is no encoder to attend to")
    hidden = facts.integer("n_embd")
    # Scores and their softmax are in float32 here, in any format.
    facts.flag("attention_softmax_in_fp32", True)
    facts.flag("scale_attention_softmax_in_fp32", True)
    return decoders.read_decoder(
        facts,
        family="gpt_bigcode",
        attention=decoders.read_equal_heads(
            facts,
            hidden_key="n_embd",
            heads_key="n_head",
            kv_heads=kv_heads,
            scaled=facts.flag("scale_attn_weights", True),
            qkv_bias=True,
            output_bias=True,
        ),
        mlp=MlpSpec(
            intermediate_size=facts.integer("n_inner", 4 * hidden),
            activation=facts.choice(
                "activation_function", decoders.ACTIVATIONS, "gelu_pytorch_tanh"
            ),
            gated=False,
            bias=True,
        ),
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_epsilon", 1e-5, high=1.0)),
        position=PositionKind.LEARNED,
        max_positions=1024,
        positions_key="n_positions",
        tied=True,
        hidden_key="n_embd",
        layers_key="n_layer",
        bos=50256,
        eos=50256,
    )


def _layer(theirs: str, *ours: str) -> tuple[Source, Source]:
    return decoders.in_layer(theirs, *ours, layers="transformer.h")


FAMILY = Family(
    name="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    other_names=("GPTBigCodeModel",),
    model_type="gpt_bigcode",
    prefix="transformer.",
    sources=(
        Source("transformer.wte.weight", ("embedding.weight",)),
        Source("transformer.wpe.weight", ("position_embedding.weight",)),
        *_layer("ln_1", "attention_norm"),
        *decoders.heads_in_layer("attn.c_attn", "transformer.h"),
        *_layer("attn.c_proj", "attention.output"),
        *_layer("ln_2", "mlp_norm"),
        *_layer("mlp.c_fc", "mlp.up"),
        *_layer("mlp.c_proj", "mlp.down"),
        *decoders.linear("transformer.ln_f", "final_norm"),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
    ),
    skips=decoders.GPT_SKIPS,
    harmless=words(
        """
        resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation
        summary_proj_to_labels summary_first_dropout inference_runner validate_runner_input
        pre_allocate_kv_cache pad_key_length max_sequence_length max_batch_size
        """
    ),
    read=_read,
    sizes={"vocab_size": 512, "n_embd": 64, "n_layer": 8, "n_head": 4},
)

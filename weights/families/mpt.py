"""MPT 7B and 30B (MosaicML 2023): ALiBi up to a bias of its own, Layer norms without biases, no
bias anywhere. Without ALiBi positions are learned, as llm-foundry has it."""

from __future__ import annotations

from dataclasses import replace

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import UNEMBEDDING_TENSOR, Family, Source
from weights.config.keys import words
from weights.spec import (
    Activation,
    AlibiSpec,
    AttentionSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    PositionKind,
)

_LAYERS = "transformer.blocks"
_NORMS = {"low_precision_layernorm": NormKind.LAYER, "layernorm": NormKind.LAYER}


def _read(facts: ConfigReader) -> ModelSpec:
    inner = facts.nested("attn_config") or ConfigReader({}, facts.architecture, "attn_config.")
    facts.only("no_bias", True, "the published models have no biases")
    facts.only("logit_scale", None, "the published models do not scale their logits")
    facts.only("ffn_config", None, "the MLP has no gate and no experts")
    alibi = inner.flag("alibi", True)
    learned = facts.flag("learned_pos_emb", True)
    if not alibi and not learned:
        raise facts.error("learned_pos_emb", "is false, and attn_config.alibi too; one is needed")
    hidden = facts.integer(decoders.either(facts, "d_model", "hidden_size"))
    spec = decoders.read_decoder(
        facts,
        family="mpt",
        attention=_attention(facts, inner),
        mlp=MlpSpec(
            intermediate_size=facts.integer("expansion_ratio", 4, high=1 << 10) * hidden,
            activation=Activation.GELU_ERF,
            gated=False,
        ),
        norm=NormSpec(
            facts.choice("norm_type", _NORMS, "low_precision_layernorm"),
            facts.number("layer_norm_epsilon", 1e-5, high=1.0),
            bias=False,
        ),
        position=PositionKind.ALIBI if alibi else PositionKind.LEARNED,
        alibi=AlibiSpec(max_bias=float(inner.integer("alibi_bias_max", 8, high=1 << 10))),
        max_positions=2048,
        positions_key="max_seq_len",
        tied=True,
        hidden_key=decoders.either(facts, "d_model", "hidden_size"),
        layers_key=decoders.either(facts, "n_layers", "num_hidden_layers"),
    )
    inner.finish(words("attn_impl attn_pdrop"))
    return spec


def _attention(facts: ConfigReader, inner: ConfigReader) -> AttentionSpec:
    inner.only("attn_type", "multihead_attention", "each query head has a key-value head")
    inner.only("qk_ln", False, "the published models do not normalise queries and keys")
    inner.only("prefix_lm", False, "a decoder looks back alone")
    inner.only("attn_uses_sequence_id", False, "a request is one sequence")
    attention = decoders.read_equal_heads(
        facts,
        hidden_key=decoders.either(facts, "d_model", "hidden_size"),
        heads_key=decoders.either(facts, "n_heads", "num_attention_heads"),
        qkv_clip=inner.cap("clip_qkv", None),
    )
    if "softmax_scale" in inner:
        return replace(attention, scale=inner.number("softmax_scale"))
    return attention


def _layer(theirs: str, *ours: str) -> tuple[Source, Source]:
    return decoders.in_layer(theirs, *ours, layers=_LAYERS)


FAMILY = Family(
    name="mpt",
    architecture="MptForCausalLM",
    other_names=("MPTForCausalLM", "MptModel"),
    model_type="mpt",
    prefix="transformer.",
    sources=(
        Source("transformer.wte.weight", ("embedding.weight",)),
        Source("transformer.wpe.weight", ("position_embedding.weight",)),
        *_layer("norm_1", "attention_norm"),
        *_layer("attn.Wqkv", "attention.query", "attention.key", "attention.value"),
        *_layer("attn.out_proj", "attention.output"),
        *_layer("norm_2", "mlp_norm"),
        *_layer("ffn.up_proj", "mlp.up"),
        *_layer("ffn.down_proj", "mlp.down"),
        *decoders.linear("transformer.norm_f", "final_norm"),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
    ),
    skips=(),
    # ``embedding_fraction`` scales gradients.
    harmless=words(
        """
        resid_pdrop emb_pdrop embedding_fraction init_config init_device tokenizer_name verbose
        """
    ),
    read=_read,
    sizes={"vocab_size": 512, "d_model": 64, "n_layers": 8, "n_heads": 4},
    own_code=frozenset({"modeling_mpt.MPTForCausalLM"}),
)

"""Phi-3, 3.5 and Phi-4, text (arXiv 2404.14219): Llama's block with fused matrices; longer contexts
by a factor for each rotary frequency, and in some a part of each head that turns."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.keys import words
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec, RopeScaling

# The first files called the same scaling "su" and "yarn".
_ROPE = RopeDefaults(
    partial=1.0,
    kinds={
        "default": RopeScaling.NONE,
        "longrope": RopeScaling.LONGROPE,
        "su": RopeScaling.LONGROPE,
        "yarn": RopeScaling.LONGROPE,
    },
)


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_attention(facts)
    facts.integer("original_max_position_embeddings", 4096, high=1 << 31)  # of the scaling
    for key in ("full_attn_mod", "interpolate_factor"):  # Phi-4-mini's
        facts.only(key, 1, "every layer attends alike")
    return decoders.read_decoder(
        facts,
        family="phi3",
        attention=attention,
        norm=decoders.rms_norm(facts, 1e-5),
        max_positions=4096,
        rope=_ROPE,
        windows=decoders.read_windows(facts, slides=lambda layer: True),
        bos=1,
        eos=32000,
    )


_ATTENTION = (
    *decoders.in_layer("self_attn.qkv_proj", "attention.query", "attention.key", "attention.value"),
    *decoders.in_layer("self_attn.o_proj", "attention.output"),
)


FAMILY = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    other_names=("Phi3Model",),
    model_type="phi3",
    prefix="model.",
    sources=decoders.names(*decoders.INPUT_NORMS, *_ATTENTION, *decoders.FUSED_MLP),
    skips=decoders.SKIPS,
    harmless=words("resid_pdrop embd_pdrop"),
    read=_read,
    own_code=frozenset({"modeling_phi3.Phi3ForCausalLM"}),
)

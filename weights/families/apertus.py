"""Apertus (Swiss AI Initiative 2025): Llama's attention with norms of single heads, and an MLP
without a gate whose activation, xIELU, has learned numbers in each layer."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import SIZES, Family, Source
from weights.config.rope import RopeDefaults, scaling_object
from weights.inventory import XIELU_NUMBERS
from weights.spec import Activation, MlpSpec, ModelSpec, QkNorm

_ROPE = RopeDefaults(theta=12000000.0)
_ACTIVATIONS = {**decoders.ACTIVATIONS, "xielu": Activation.XIELU}


def _read(facts: ConfigReader) -> ModelSpec:
    if scaling_object(facts, _ROPE) is None:  # transformers would scale by numbers of its own
        raise facts.error("rope_parameters", f"is missing; {facts.architecture} needs it")
    for key, served in (("qk_norm", True), ("post_norm", False), ("mlp_bias", False)):
        facts.only(key, served, "so this architecture is built")
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(facts, qkv_bias=bias, output_bias=bias, qk_norm=QkNorm.HEAD)
    return decoders.read_decoder(
        facts,
        family="apertus",
        attention=attention,
        mlp=MlpSpec(
            facts.integer("intermediate_size"),
            facts.choice("hidden_act", _ACTIVATIONS, "xielu"),
            gated=False,
        ),
        norm=decoders.rms_norm(facts, 1e-5),
        max_positions=65536,
        rope=_ROPE,
        bos=1,
        eos=2,
    )


_NUMBERS = tuple(
    Source(f"model.layers.{{i}}.mlp.act_fn.{number}", (f"layers.{{i}}.mlp.activation.{number}",))
    for number in XIELU_NUMBERS
)

FAMILY = Family(
    name="apertus",
    architecture="ApertusForCausalLM",
    other_names=("ApertusModel",),
    model_type="apertus",
    prefix="model.",
    sources=decoders.names(
        *decoders.in_layer("attention_layernorm", "attention_norm"),
        *decoders.ATTENTION,
        *decoders.QK_NORMS,
        *decoders.in_layer("feedforward_layernorm", "mlp_norm"),
        *decoders.UP_DOWN,
        *_NUMBERS,
    ),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
    sizes={**SIZES, "rope_parameters": {"rope_type": "default"}},
)

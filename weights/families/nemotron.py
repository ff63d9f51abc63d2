"""Nemotron and Minitron, dense (arXiv 2407.14679): Layer norms whose weights are stored less 1, an
MLP without a gate whose activation is a squared ReLU, half of each head turns."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec, NormKind, NormSpec

_PART = 0.5
_ROPE = RopeDefaults(partial=_PART)


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(facts, qkv_bias=bias, output_bias=bias)
    part = facts.number("partial_rotary_factor", _PART, high=1.0)
    for key in ("rope_percent", "rope_percentage"):  # its names in the first files
        facts.only(key, part, "partial_rotary_factor says it")
    return decoders.read_decoder(
        facts,
        family="nemotron",
        attention=attention,
        mlp=decoders.read_mlp(
            facts, default="relu2", gated=False, bias=facts.flag("mlp_bias", False)
        ),
        norm=NormSpec(NormKind.LAYER, facts.number("norm_eps", 1e-5, high=1.0), unit_offset=True),
        max_positions=4096,
        rope=_ROPE,
        bos=2,
        eos=3,
    )


FAMILY = Family(
    name="nemotron",
    architecture="NemotronForCausalLM",
    other_names=("NemotronModel",),
    model_type="nemotron",
    prefix="model.",
    sources=decoders.names(*decoders.INPUT_NORMS, *decoders.ATTENTION, *decoders.UP_DOWN),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)

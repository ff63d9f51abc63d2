"""OLMo 2 (arXiv 2501.00656): what attention and MLP give is normalised, not what they take, and
queries and keys over all heads together."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.spec import ModelSpec, NormPlacement, QkNorm


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("attention_bias", False)
    attention = decoders.read_attention(
        facts, qkv_bias=bias, output_bias=bias, qk_norm=QkNorm.WHOLE
    )
    return decoders.read_decoder(
        facts,
        family="olmo2",
        attention=attention,
        norm=decoders.rms_norm(facts, 1e-5, NormPlacement.OUTPUT),
        max_positions=2048,
        eos=50279,
    )


FAMILY = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    other_names=("Olmo2Model",),
    model_type="olmo2",
    prefix="model.",
    sources=decoders.names(
        *decoders.ATTENTION, *decoders.QK_NORMS, *decoders.OUTPUT_NORMS, *decoders.GATED_MLP
    ),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)

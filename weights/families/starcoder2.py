"""StarCoder 2 (arXiv 2402.19173): Layer norms, rotary positions, and an MLP without a gate, all
with biases; a window in every layer where the file names one."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.keys import words
from weights.spec import ModelSpec, NormKind, NormSpec


def _read(facts: ConfigReader) -> ModelSpec:
    bias = facts.flag("use_bias", True)
    facts.only("mlp_type", "default", "a gated MLP is not read here")
    facts.only("norm_type", "layer_norm", "an RMS norm is not read here")
    attention = decoders.read_attention(facts, kv_heads=2, qkv_bias=bias, output_bias=bias)
    return decoders.read_decoder(
        facts,
        family="starcoder2",
        attention=attention,
        mlp=decoders.read_mlp(facts, default="gelu_pytorch_tanh", gated=False, bias=bias),
        norm=NormSpec(NormKind.LAYER, facts.number("norm_epsilon", 1e-5, high=1.0)),
        max_positions=4096,
        tied=True,
        windows=decoders.read_windows(facts, slides=lambda layer: True),
        bos=50256,
        eos=50256,
    )


_MLP = (
    *decoders.in_layer("mlp.c_fc", "mlp.up"),
    *decoders.in_layer("mlp.c_proj", "mlp.down"),
)


FAMILY = Family(
    name="starcoder2",
    architecture="Starcoder2ForCausalLM",
    other_names=("Starcoder2Model",),
    model_type="starcoder2",
    prefix="model.",
    sources=decoders.names(*decoders.INPUT_NORMS, *decoders.ATTENTION, *_MLP),
    skips=decoders.SKIPS,
    harmless=words("residual_dropout embedding_dropout rms_norm_eps"),
    read=_read,
)

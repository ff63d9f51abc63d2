"""StableLM 2 and 3B (arXiv 2402.17834): Layer norms, a gated MLP, a quarter of each head's
channels turn; some add attention and MLP of one norm, and 12B normalises each head of queries and
keys, with weights of its own."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec, NormKind, NormSpec, ParallelBlock, QkNorm

_ROPE = RopeDefaults(partial=0.25)


def _read(facts: ConfigReader) -> ModelSpec:
    qk_norm = QkNorm.EACH_HEAD if facts.flag("qk_layernorm", False) else QkNorm.NONE
    attention = decoders.read_attention(
        facts, kv_heads=32, qkv_bias=facts.flag("use_qkv_bias", False), qk_norm=qk_norm
    )
    parallel = facts.flag("use_parallel_residual", False)
    return decoders.read_decoder(
        facts,
        family="stablelm",
        attention=attention,
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_eps", 1e-5, high=1.0)),
        max_positions=4096,
        rope=_ROPE,
        parallel=ParallelBlock.SHARED_NORM if parallel else ParallelBlock.NONE,
        bos=0,
        eos=0,
    )


_HEAD_NORMS = (
    *decoders.in_layer("self_attn.q_layernorm.norms.{head}", "attention.query_norm"),
    *decoders.in_layer("self_attn.k_layernorm.norms.{head}", "attention.key_norm"),
)


FAMILY = Family(
    name="stablelm",
    architecture="StableLmForCausalLM",
    other_names=("StableLmModel",),
    model_type="stablelm",
    prefix="model.",
    sources=decoders.names(
        *decoders.INPUT_NORMS, *decoders.ATTENTION, *_HEAD_NORMS, *decoders.GATED_MLP
    ),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)

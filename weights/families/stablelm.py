"""StableLM 2 and 3B (arXiv 2402.17834): Layer norms, a gated MLP, a quarter of each head's
channels turn; some add attention and MLP of one norm."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.config.rope import RopeDefaults
from weights.spec import ModelSpec, NormKind, NormSpec, ParallelBlock

_ROPE = RopeDefaults(partial=0.25)


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_attention(
        facts, kv_heads=32, qkv_bias=facts.flag("use_qkv_bias", False)
    )
    facts.only("qk_layernorm", False, "norms of single heads are not read yet")
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


FAMILY = Family(
    name="stablelm",
    architecture="StableLmForCausalLM",
    other_names=("StableLmModel",),
    model_type="stablelm",
    prefix="model.",
    sources=decoders.LLAMA_NAMES,
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)

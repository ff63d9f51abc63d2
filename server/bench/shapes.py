"""Published shapes that the bench fills with random weights: speed depends on no value."""

from __future__ import annotations

from dataclasses import replace

from weights.presets import find_preset
from weights.spec import ModelSpec, QkNorm
from weights.synthetic.checkpoint import tiny_gpt2
from weights.synthetic.tiny_specs import BOS_TOKEN_ID, EOS_TOKEN_ID

CPU_POSITIONS = 4096
GPU_POSITIONS = 16384


def shapes() -> dict[str, ModelSpec]:
    """Shapes of a CPU's size."""
    gpt2 = tiny_gpt2(
        num_heads=12, hidden_size=768, num_layers=12, vocab_size=50257, max_positions=1024
    )
    return {
        "gpt2": gpt2,
        "llama-0.5b": as_llama("qwen2.5-0.5b", CPU_POSITIONS, "f32"),
        "llama-1b": as_llama("llama-3.2-1b", CPU_POSITIONS, "f32"),
    }


def gpu_shapes() -> dict[str, ModelSpec]:
    """Shapes of a GPU's size."""
    return {
        "llama-3.1-8b": as_llama("llama-3.1-8b", GPU_POSITIONS, "bf16"),
        "llama-3.2-1b": as_llama("llama-3.2-1b", GPU_POSITIONS, "bf16"),
        "qwen3-0.6b-without-qk-norm": as_llama("qwen3-0.6b", GPU_POSITIONS, "bf16"),
    }


def as_llama(preset: str, max_positions: int, parameter_dtype: str) -> ModelSpec:
    """A preset's shape as one that is served today: without the biases of Qwen2, and without
    Qwen3's norms of queries and keys; with no more positions than are measured."""
    spec = find_preset(preset).spec
    return replace(
        spec,
        family="llama",
        architecture="LlamaForCausalLM",
        attention=replace(spec.attention, qkv_bias=False, qk_norm=QkNorm.NONE),
        rope=replace(spec.rope, original_max_positions=max_positions),
        max_positions=max_positions,
        parameter_dtype=parameter_dtype,
        bos_token_id=BOS_TOKEN_ID,
        eos_token_ids=(EOS_TOKEN_ID,),
    )

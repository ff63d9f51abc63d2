"""Published shapes that the bench fills with random weights: speed depends on no value."""

from __future__ import annotations

from weights.spec import ModelSpec
from weights.synthetic import tiny_gpt2, tiny_llama


def shapes() -> dict[str, ModelSpec]:
    """Published shapes for random weights."""
    gpt2 = tiny_gpt2(
        num_heads=12, hidden_size=768, num_layers=12, vocab_size=50257, max_positions=1024
    )
    half = tiny_llama(
        num_query_heads=14,
        num_kv_heads=2,
        head_dim=64,
        hidden_size=896,
        num_layers=24,
        intermediate_size=4864,
        vocab_size=151936,
        max_positions=4096,
        tied=True,
    )
    one = tiny_llama(
        num_query_heads=32,
        num_kv_heads=8,
        head_dim=64,
        hidden_size=2048,
        num_layers=16,
        intermediate_size=8192,
        vocab_size=128256,
        max_positions=4096,
        tied=True,
    )
    return {"gpt2": gpt2, "llama-0.5b": half, "llama-1b": one}


def gpu_shapes() -> dict[str, ModelSpec]:
    """Published shapes of a GPU's size. Qwen3's norms of queries and keys are left out."""
    return {
        "llama-3.1-8b": tiny_llama(
            num_query_heads=32,
            num_kv_heads=8,
            head_dim=128,
            hidden_size=4096,
            num_layers=32,
            intermediate_size=14336,
            vocab_size=128256,
            max_positions=16384,
            parameter_dtype="bf16",
        ),
        "llama-3.2-1b": tiny_llama(
            num_query_heads=32,
            num_kv_heads=8,
            head_dim=64,
            hidden_size=2048,
            num_layers=16,
            intermediate_size=8192,
            vocab_size=128256,
            max_positions=16384,
            tied=True,
            parameter_dtype="bf16",
        ),
        "qwen3-0.6b-without-qk-norm": tiny_llama(
            num_query_heads=16,
            num_kv_heads=8,
            head_dim=128,
            hidden_size=1024,
            num_layers=28,
            intermediate_size=3072,
            vocab_size=151936,
            max_positions=16384,
            tied=True,
            parameter_dtype="bf16",
        ),
    }

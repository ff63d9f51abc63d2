"""Checkpoints of every family and form that is served, and limits to serve them with."""

from __future__ import annotations

from weights.spec import Activation, ModelSpec, RopeScaling, RopeSpec
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

# Every third is first measured in float32: those whose products take longest are among them, since
# a CPU without 16-bit arithmetic multiplies 16-bit matrices ten times as slowly.
MODELS: dict[str, ModelSpec] = {
    "tied, large vocabulary": tiny_llama(
        hidden_size=256, num_layers=2, vocab_size=128_000, tied=True, intermediate_size=512
    ),
    "llama": tiny_llama(hidden_size=256, num_layers=4, intermediate_size=700),
    "narrow heads": tiny_llama(  # and a quarter as wide
        num_query_heads=4, num_kv_heads=2, head_dim=32, hidden_size=512, vocab_size=2000
    ),
    "gpt2": tiny_gpt2(hidden_size=768, num_heads=12, vocab_size=50_257, num_layers=2),
    "multi-head": tiny_llama(
        num_query_heads=12, num_kv_heads=12, head_dim=64, hidden_size=768, vocab_size=3000
    ),
    "wide heads": tiny_llama(  # queries three times as wide as the hidden state
        num_query_heads=12, num_kv_heads=4, head_dim=128, hidden_size=512, vocab_size=2000
    ),
    "wide mlp": tiny_llama(
        hidden_size=512, num_query_heads=8, num_kv_heads=8, head_dim=64, intermediate_size=6000
    ),
    "biases": tiny_llama(
        hidden_size=512, num_query_heads=8, head_dim=64, attention_bias=True, mlp_bias=True
    ),
    "multi-query": tiny_llama(num_query_heads=16, num_kv_heads=1, head_dim=64, hidden_size=512),
    "untied, large vocabulary": tiny_llama(
        hidden_size=256, num_layers=2, vocab_size=32_000, intermediate_size=512
    ),
    "gpt2, relu, untied": tiny_gpt2(
        hidden_size=320, num_heads=5, activation=Activation.RELU, tied=False, num_layers=6
    ),
    "scaled rope": tiny_llama(
        hidden_size=384,
        num_query_heads=6,
        head_dim=64,
        max_positions=1024,
        rope=RopeSpec(
            scaling=RopeScaling.YARN, factor=4.0, original_max_positions=256, attention_factor=1.0
        ),
    ),
    "120 million parameters": tiny_llama(
        num_query_heads=16,
        num_kv_heads=4,
        head_dim=64,
        hidden_size=1024,
        intermediate_size=2816,
        num_layers=5,
        vocab_size=32_000,
    ),
    "gpt2, wide": tiny_gpt2(
        hidden_size=1024, num_heads=8, vocab_size=5000, intermediate_size=8192, num_layers=2
    ),
}

LIMITS: dict[str, dict[str, str]] = {
    "few": {"max-num-seqs": "4", "max-num-batched-tokens": "96", "max-model-len": "200"},
    "middle": {
        "max-num-seqs": "16",
        "max-num-batched-tokens": "512",
        "max-model-len": "512",
        "kv-cache-memory": "48MiB",
    },
    "many": {
        "max-num-seqs": "64",
        "max-num-batched-tokens": "2048",
        "max-model-len": "512",
        "kv-cache-memory": "200MiB",
    },
}
DTYPES = ("float32", "bfloat16", "float16")

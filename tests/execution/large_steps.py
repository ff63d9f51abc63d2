"""Checkpoints whose largest step makes intermediates that can be told from each other."""

from __future__ import annotations

from pathlib import Path

from server.execution.build import BuiltRunner, build_runner
from tests.engine_configs import engine_config
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import tiny_bloom, tiny_gpt2, tiny_llama, write_checkpoint

SPECS: dict[str, ModelSpec] = {
    "wide mlp": tiny_llama(
        vocab_size=600, hidden_size=128, intermediate_size=512, num_query_heads=8, head_dim=32
    ),
    "large vocabulary": tiny_llama(vocab_size=20_000, hidden_size=32, intermediate_size=64),
    "many wide heads": tiny_llama(
        vocab_size=300, num_query_heads=16, num_kv_heads=16, head_dim=64, intermediate_size=64
    ),
    "gpt2": tiny_gpt2(vocab_size=5000, hidden_size=128),
    "bloom": tiny_bloom(vocab_size=5000, hidden_size=128, num_heads=8),
}


def build(name: str, format: str, folder: Path) -> BuiltRunner:
    write_checkpoint(SPECS[name], folder, seed=1, format=format)
    sizes = {"num_blocks": 256, "max_num_seqs": 16, "max_num_batched_tokens": 2048}
    config = engine_config(format=format, max_logit_rows=64, **sizes)
    return build_runner(folder, config, warm_up=False)

"""Checkpoints that are sharp, so that a wrong mask or position changes the answers."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.equivalence import workloads
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import tiny_bloom, tiny_gpt2, tiny_llama, write_checkpoint

FINAL_NORM = ("model.norm.weight", "ln_f.weight", "ln_f.bias")
SPECS: dict[str, ModelSpec] = {
    "llama": tiny_llama(
        vocab_size=workloads.VOCAB, num_layers=2, max_positions=256, intermediate_size=96
    ),
    "gpt2": tiny_gpt2(vocab_size=workloads.VOCAB, num_layers=2, max_positions=256),
    "bloom": tiny_bloom(
        vocab_size=workloads.VOCAB, num_layers=2, max_positions=256, hidden_size=48, tied=False
    ),
}
QUERY_SCALE = {"llama": 0.5, "gpt2": 0.7, "bloom": 0.7}


def write(name: str, folder: Path, seed: int = 1) -> Path:
    """A sharp checkpoint whose sharpness does not outgrow what ``rounding`` reckons with.

    Products round differently with the number of rows, and sharp attention amplifies that: with
    the synthetic weights as they come, logits are twice as large and answers were 2.3e-5 nats
    apart. Queries and logits are scaled down. Attention stays far from even and greedy output
    varied, which test_equivalence asserts of every checkpoint used.
    """
    write_checkpoint(SPECS[name], folder, seed=seed)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for tensor_name, tensor in tensors.items():
        if tensor_name.endswith("attn.c_attn.weight"):
            tensor[:, : tensor.shape[1] // 3] *= QUERY_SCALE[name]  # the columns of queries
        elif tensor_name.endswith("query_key_value.weight"):
            heads, head_dim = (SPECS[name].attention.num_kv_heads, SPECS[name].attention.head_dim)
            tensor.view(heads, 3, head_dim, -1)[:, 0] *= QUERY_SCALE[name]
        elif tensor_name.endswith("self_attn.q_proj.weight"):
            tensor *= QUERY_SCALE[name]
        elif tensor_name.endswith(FINAL_NORM):
            tensor *= 0.5
    save_file(tensors, file, metadata={"format": "pt"})
    return folder

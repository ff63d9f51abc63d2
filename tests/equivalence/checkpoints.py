"""Checkpoints that are sharp, so that a wrong mask or position changes the answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.equivalence import workloads
from tests.parity.family_checkpoints import CASES, write_case
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import tiny_bloom, tiny_gpt2, tiny_llama, write_checkpoint

FINAL_NORM = ("model.norm.weight", "ln_f.weight", "ln_f.bias", "final_layernorm.weight")
UNEMBEDDINGS = ("lm_head.weight", "transformer.tokens_embed.weight")  # of sums that are normalised
QUERIES = ("self_attn.q_proj.weight", "self_attn.q_norm.weight")
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


@dataclass(frozen=True)
class Kind:
    """A checkpoint of what llama and gpt2 have not: a case of a family, and what tames it."""

    family: str
    case: int = 0
    queries: float = 1.0
    logits: float = 0.5
    seed: int = 0


KINDS = {
    "windows, caps, four norms": Kind("gemma2", 1, logits=1.0, seed=1),
    "norms of outputs": Kind("olmo2", queries=0.5),
    "norms of sums": Kind("gpt1", queries=0.6, logits=0.7, seed=2),
    "parallel block": Kind("phi"),
    "layers without rotary": Kind("smollm3"),
}


def write(name: str, folder: Path, seed: int = 1) -> Path:
    """A sharp checkpoint whose sharpness does not outgrow what ``rounding`` reckons with.

    Products round differently with the number of rows, and sharp attention amplifies that: with
    the synthetic weights as they come, logits are twice as large and answers were 2.3e-5 nats
    apart. Queries and logits are scaled down. Attention stays far from even and greedy output
    varied, which test_equivalence asserts of every checkpoint used.
    """
    if name in KINDS:
        kind = KINDS[name]
        case = CASES[kind.family][kind.case]
        write_case(
            replace(case, base=case.base | {"vocab_size": workloads.VOCAB}), folder, kind.seed
        )
        _tame(folder, kind.queries, kind.logits)
    else:
        write_checkpoint(SPECS[name], folder, seed=seed)
        _tame(folder, QUERY_SCALE[name], 0.5)
    return folder


def _tame(folder: Path, queries: float, logits: float) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    final = [name for name in tensors if name.endswith(FINAL_NORM)] or list(UNEMBEDDINGS)
    for name, tensor in tensors.items():
        if name.endswith("attn.c_attn.weight"):
            tensor[:, : tensor.shape[1] // 3] *= queries  # the columns of queries
        elif name.endswith("query_key_value.weight"):  # head by head
            heads = SPECS["bloom"].attention
            tensor.view(heads.num_kv_heads, 3, heads.head_dim, -1)[:, 0] *= queries
        elif name.endswith(QUERIES):
            tensor *= queries
        elif name in final:
            tensor *= logits
    save_file(tensors, file, metadata={"format": "pt"})

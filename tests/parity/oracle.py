"""transformers as the oracle of parity: logits, greedy tokens, how sharp attention is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", local_files_only=True
    )
    return model.eval()


@torch.inference_mode()
def logits(model: Any, ids: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[len(ids), V]"""
    return model(torch.tensor([ids])).logits[0].to(dtype)


@torch.inference_mode()
def greedy(model: Any, ids: list[int], num_tokens: int) -> list[int]:
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(ids) :].tolist()


@torch.inference_mode()
def relative_entropy(model: Any, ids: list[int]) -> float:
    """Mean entropy of attention, as a fraction of what looking everywhere alike would have."""
    attentions = model(torch.tensor([ids]), output_attentions=True).attentions
    length = len(ids)
    uniform = torch.log(torch.arange(1, length + 1, dtype=torch.float32))[1:]
    weights = torch.stack([layer[0] for layer in attentions])[:, :, 1:]  # position 0 has no choice
    entropy = -(weights * weights.clamp_min(1e-30).log()).sum(-1)
    return float((entropy / uniform).mean())

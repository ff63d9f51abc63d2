"""Other engines beside ours, where they can be imported."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


def transformers_tokens_per_second(
    folder: Path, prompts: list[list[int]], output_tokens: int, device: torch.device
) -> float | None:
    """Tokens a second of the transformers library's continuous batching, prefill included.

    A first run of the same prompts warms it up. None where the library, or this part of it, is not
    there.
    """
    try:
        library: Any = import_module("transformers")
    except ImportError:
        return None
    model = library.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).to(device)
    if not hasattr(model, "generate_batch"):
        return None
    wishes = library.GenerationConfig(
        max_new_tokens=output_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        answers = model.generate_batch(inputs=prompts, generation_config=wishes)
        seconds = time.perf_counter() - started
    tokens = sum(len(answer.generated_tokens) for answer in answers.values())
    return tokens / seconds

"""Other engines beside ours, where they can be imported."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class PeerOutcome:
    """What another engine made of a row. Without a figure, ``reason`` says why."""

    row: str
    engine: str
    tokens_per_second: float | None = None
    reason: str = ""


def transformers_outcome(
    row: str, folder: Path, prompts: list[list[int]], output_tokens: int, device: torch.device
) -> PeerOutcome:
    """The transformers library's continuous batching on one batch.

    Never raises for what goes wrong in the library: our own rows must not be lost for another's.
    """
    try:
        rate = _transformers_tokens_per_second(folder, prompts, output_tokens, device)
    except ImportError as error:
        return PeerOutcome(row, "transformers", reason=f"not to be imported: {_told(error)}")
    except Exception as error:
        return PeerOutcome(row, "transformers", reason=_told(error))
    return PeerOutcome(row, "transformers", rate)


def _transformers_tokens_per_second(
    folder: Path, prompts: list[list[int]], output_tokens: int, device: torch.device
) -> float:
    """Tokens a second, prefill included. A first run of the same prompts warms it up."""
    library: Any = import_module("transformers")
    model = library.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).to(device)
    if not hasattr(model, "generate_batch"):
        raise RuntimeError("this version has no continuous batching")
    wishes = library.GenerationConfig(
        max_new_tokens=output_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        answers = model.generate_batch(inputs=prompts, generation_config=wishes)
        seconds = time.perf_counter() - started
    tokens = sum(len(answer.generated_tokens) for answer in answers.values())
    wanted = len(prompts) * output_tokens
    if tokens != wanted:  # what fails within its thread only ends the batch early
        raise RuntimeError(f"it generated {tokens} of {wanted} tokens")
    return tokens / seconds


def _told(error: Exception) -> str:
    """The error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

"""Print continuations of a few prompts under fixed seeds, as the model card shows them.

    python -m weights.demo.sample --checkpoint weights/demo/checkpoint

One sample per prompt and seed, none left out. The whole sequence is computed again for
each token: slow, but there is no cache that could be wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from weights.demo.checkpoint import load_exported
from weights.demo.model import DemoModel
from weights.demo.score import CHECKPOINT
from weights.demo.tokenizer import END_OF_TEXT_ID, load_tokenizer

PROMPTS = ("def ", "import ", "class Queue:\n", "    def __init__(self, ", "for line in ")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    return parser.parse_args()


def pick(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token from the smallest set of most likely ones that holds `top_p`."""
    if temperature == 0:
        return int(logits.argmax())
    chances, order = (logits / temperature).softmax(-1).sort(descending=True)
    chances[chances.cumsum(-1) - chances >= top_p] = 0.0
    return int(order[torch.multinomial(chances, 1, generator=generator)])


def continuation(
    model: DemoModel, ids: list[int], options: argparse.Namespace, seed: int
) -> list[int]:
    """Return the tokens that follow `ids`, up to the end of the text."""
    generator = torch.Generator().manual_seed(seed)
    ids, prompt = list(ids), len(ids)
    context = model.shape.max_position_embeddings
    with torch.no_grad():
        while len(ids) < min(prompt + options.tokens, context):
            logits = model(torch.tensor([ids]))[0, -1]
            token = pick(logits, options.temperature, options.top_p, generator)
            if token == END_OF_TEXT_ID:
                break
            ids.append(token)
    return ids[prompt:]


def main() -> None:
    """Print every sample."""
    options = parse()
    model, tokenizer = load_exported(options.checkpoint), load_tokenizer(options.checkpoint)
    for prompt in options.prompts:
        for seed in options.seeds:
            ids = tokenizer.encode(prompt, add_special_tokens=False).ids
            text = tokenizer.decode(continuation(model, ids, options, seed))
            print(f"--- prompt {prompt!r}, seed {seed}\n{prompt}{text}\n")


if __name__ == "__main__":
    main()

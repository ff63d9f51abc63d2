"""Train the demo model on the standard library, on the CPU, and write its folder.

    python -m weights.demo.train --run build/demo --steps 3000 --decay-steps 900 \
        --long-steps 300 --export weights/demo/checkpoint

The learning rate warms up, stays, and falls to zero over the last `--decay-steps`. The run
is saved every `--save-every` steps as one safetensors file under `--run`; starting again
with the same folder goes on from there, and starting again with a nearer `--steps` begins
the fall at once. The last `--long-steps` use rows of 1024 tokens instead of 512, so that
every position is trained. The tokenizer is trained first if the run folder has none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from weights.demo.checkpoint import Progress, export, load_run, save_run
from weights.demo.corpus import Document, Split, read_heldout, read_library, split_library
from weights.demo.data import CHUNK, Batches, encode_documents
from weights.demo.model import DemoModel, Shape
from weights.demo.optim import Optimiser, Rates
from weights.demo.tokenizer import END_OF_TEXT_ID, load_tokenizer, save_tokenizer, train_tokenizer
from weights.demo.windows import Window, bits_per_byte, windows


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder for the run's state")
    parser.add_argument("--export", type=Path, help="Hugging Face folder to write at the end")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--decay-steps", type=int, default=900)
    parser.add_argument("--long-steps", type=int, default=300)
    parser.add_argument("--short-row", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4, help=f"chunks of {CHUNK} in a step")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--dev-every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix-rate", type=float, default=Rates.matrices)
    parser.add_argument("--embedding-rate", type=float, default=Rates.embedding)
    parser.add_argument("--compile", action="store_true", help="fuse with torch.compile")
    return parser.parse_args()


def factor(step: int, steps: int, warmup: int, decay: int) -> float:
    """Share of the plateau's learning rate at a step (from 1): up, flat, down to zero."""
    return max(0.0, min(1.0, step / warmup, (steps + 1 - step) / (decay + 1)))


def window_nats(model: DemoModel, window: Window) -> float:
    """Negative log-likelihood, in nats, of the tokens a window is to score."""
    with torch.no_grad():
        row = torch.tensor([window.ids])
        logits = model(row)[0, window.first_scored - 1 : -1]
        return float(F.cross_entropy(logits, row[0, window.first_scored :], reduction="sum"))


def score(model: DemoModel, tokenizer: Tokenizer, documents: Sequence[Document]) -> float:
    """Bits per byte of the documents under the model."""
    length = model.shape.max_position_embeddings
    nats = 0.0
    for document in documents:
        ids = tokenizer.encode(document.text, add_special_tokens=False).ids
        for window in windows([END_OF_TEXT_ID, *ids], length, length // 2):
            nats += window_nats(model, window)
    return bits_per_byte(nats, sum(document.size for document in documents))


def prepare_tokenizer(folder: Path, split: Split) -> Tokenizer:
    """Load the run's tokenizer, training it first where there is none."""
    if not (folder / "tokenizer.json").exists():
        tokenizer = train_tokenizer(document.text for document in split.train)
        save_tokenizer(tokenizer, folder, CHUNK)
    return load_tokenizer(folder)


class Run:
    """One training run: model, optimiser, data and how far it has come."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.split = split_library(read_library(), read_heldout())
        self.tokenizer = prepare_tokenizer(options.run, self.split)
        stream = encode_documents(self.tokenizer, self.split.train, options.seed)
        self.batches = Batches(stream, options.seed)
        self.model = DemoModel(Shape(vocab_size=self.tokenizer.get_vocab_size()), options.seed)
        rates = replace(Rates(), matrices=options.matrix_rate, embedding=options.embedding_rate)
        self.optimiser = Optimiser(self.model, rates)
        self.progress = Progress()
        self.path: Path = options.run / "run.safetensors"
        if self.path.exists():
            self.progress = load_run(self.path, self.model, self.optimiser)
        self.loss = torch.compile(self.model.loss) if options.compile else self.model.loss
        print(f"{len(stream)} tokens a pass; from step {self.progress.step}", flush=True)

    def step(self) -> Tensor:
        """Do one update and return its loss."""
        options, done = self.options, self.progress
        long = done.step >= options.steps - options.long_steps
        length = CHUNK if long else options.short_row
        ids, targets = self.batches.batch(done.chunks, options.chunks, length)
        loss: Tensor = self.loss(ids, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        done.step += 1
        done.chunks += options.chunks
        share = factor(done.step, options.steps, options.warmup_steps, options.decay_steps)
        self.optimiser.step(done.step, share)
        self.model.zero_grad(set_to_none=True)
        return loss.detach()

    def report(self, losses: list[float]) -> None:
        """Print the mean loss since the last report, and now and then the dev score."""
        done, options = self.progress, self.options
        tokens = done.chunks * CHUNK
        line = f"step {done.step} tokens {tokens} loss {sum(losses) / len(losses):.4f}"
        line += f" {tokens / done.seconds:.0f} tokens/s"
        if done.step % options.dev_every == 0 or done.step == options.steps:
            line += f" dev {score(self.model, self.tokenizer, self.split.dev):.4f} bits per byte"
        print(line, flush=True)

    def train(self) -> None:
        """Go on until the last step, saving and reporting on the way."""
        options, done = self.options, self.progress
        losses: list[float] = []
        while done.step < options.steps:
            begin = time.monotonic()
            losses.append(float(self.step()))
            done.seconds += time.monotonic() - begin
            if done.step % options.save_every == 0 or done.step == options.steps:
                save_run(self.path, self.model, self.optimiser, done)
            if done.step % 50 == 0 or done.step == options.steps:
                self.report(losses)
                losses.clear()


def main() -> None:
    """Train, and export where asked to."""
    options = parse()
    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    run.train()
    if options.export is not None:
        export(run.model, run.tokenizer, options.export)


if __name__ == "__main__":
    main()

"""Train the demo model on the standard library, on the CPU, and write its folder.

    python -m weights.demo.train --run build/demo --steps 3000 --decay-steps 900 \
        --long-steps 300 --export weights/demo/checkpoint

The learning rate warms up, stays, and falls to zero over the last `--decay-steps`. The run
is saved every `--save-every` steps as one safetensors file under `--run`; starting again
with the same folder goes on from there, and starting again with a nearer `--steps` begins
the fall at once. The last `--long-steps` use rows of 1024 tokens instead of `--short-row`, so
that every position is trained. With `--minutes` the plan counts time instead of steps, for a
machine that has other work too; `--decay-minutes` and `--long-minutes` take the place of the
two step counts. The tokenizer is trained first if the run folder has none.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
    parser.add_argument("--minutes", type=float, help="end after this time, not after --steps")
    parser.add_argument("--decay-minutes", type=float, default=15.0)
    parser.add_argument("--long-minutes", type=float, default=5.0)
    parser.add_argument("--short-row", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4, help=f"chunks of {CHUNK} in a step")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--report-every", type=int, default=50)
    parser.add_argument("--dev-every", type=int, default=500)
    parser.add_argument("--code-copies", type=int, default=3, help="copies of each non-test file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix-rate", type=float, default=Rates.matrices)
    parser.add_argument("--embedding-rate", type=float, default=Rates.embedding)
    parser.add_argument("--compile", action="store_true", help="fuse with torch.compile")
    return parser.parse_args()


def factor(step: int, warmup: int, left: float, decay: float) -> float:
    """Share of the plateau's learning rate: up with the steps, flat, down with what is left."""
    return max(0.0, min(1.0, step / warmup, left / decay))


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
        stream = encode_documents(
            self.tokenizer, self.split.train, options.seed, options.code_copies
        )
        self.batches = Batches(stream, options.seed)
        self.model = DemoModel(Shape(vocab_size=self.tokenizer.get_vocab_size()), options.seed)
        rates = replace(Rates(), matrices=options.matrix_rate, embedding=options.embedding_rate)
        self.optimiser = Optimiser(self.model, rates)
        self.progress = Progress()
        self.begin = time.monotonic()
        self.path: Path = options.run / "run.safetensors"
        if self.path.exists():
            self.progress = load_run(self.path, self.model, self.optimiser)
        # Each thread works on a chunk of its own with one core: threads that share every
        # multiplication wait for each other all the time when the machine has other work.
        self.pool = ThreadPoolExecutor(options.threads)
        self.loss = torch.compile(self.model.loss) if options.compile else self.model.loss
        print(f"{len(stream)} tokens a pass; from step {self.progress.step}", flush=True)

    def chunk_gradient(self, index: int, length: int) -> tuple[float, tuple[Tensor, ...]]:
        """Loss of one chunk, and the gradient of every weight."""
        ids, targets = self.batches.batch(index, 1, length)
        loss: Tensor = self.loss(ids, targets)
        return float(loss.detach()), torch.autograd.grad(loss, list(self.model.parameters()))

    def seconds_left(self) -> float:
        """Time left where the run has a budget of time, else without end."""
        if self.options.minutes is None:
            return math.inf
        return float(self.begin + self.options.minutes * 60 - time.monotonic())

    def finished(self) -> bool:
        """Whether the steps or the time are used up."""
        return self.progress.step >= self.options.steps or self.seconds_left() <= 0

    def schedule(self) -> tuple[int, float]:
        """Row length and share of the learning rate for the next step."""
        options, step = self.options, self.progress.step
        if options.minutes is None:
            left, decay, long = options.steps - step, options.decay_steps, options.long_steps
        else:
            left, decay = self.seconds_left(), options.decay_minutes * 60
            long = options.long_minutes * 60
        length = CHUNK if left <= long else options.short_row
        return length, factor(step + 1, options.warmup_steps, left, decay)

    def step(self) -> float:
        """Do one update and return its loss."""
        options, done = self.options, self.progress
        length, share = self.schedule()
        indices = range(done.chunks, done.chunks + options.chunks)
        results = list(self.pool.map(lambda i: self.chunk_gradient(i, length), indices))
        gradients = zip(*(gradient for _, gradient in results), strict=True)
        for weight, parts in zip(self.model.parameters(), gradients, strict=True):
            weight.grad = torch.stack(parts).mean(0)
        done.step += 1
        done.chunks += options.chunks
        self.optimiser.step(done.step, share, self.pool)
        return sum(loss for loss, _ in results) / len(results)

    def report(self, losses: list[float], last: bool) -> None:
        """Print the mean loss since the last report, and now and then the dev score."""
        done, options = self.progress, self.options
        tokens = done.chunks * CHUNK
        line = f"step {done.step} tokens {tokens} loss {sum(losses) / len(losses):.4f}"
        line += f" after {done.seconds / 60:.1f} minutes"
        if last or done.step % options.dev_every == 0:
            line += f" dev {score(self.model, self.tokenizer, self.split.dev):.4f} bits per byte"
        print(line, flush=True)

    def train(self) -> None:
        """Go on until the end, saving and reporting on the way."""
        options, done = self.options, self.progress
        losses: list[float] = []
        self.begin = time.monotonic()
        while not self.finished():
            begin = time.monotonic()
            losses.append(self.step())
            done.seconds += time.monotonic() - begin
            last = self.finished()
            if last or done.step % options.save_every == 0:
                save_run(self.path, self.model, self.optimiser, done)
            if last or done.step % options.report_every == 0:
                self.report(losses, last)
                losses.clear()


def main() -> None:
    """Train, and export where asked to."""
    options = parse()
    torch.set_num_threads(1)
    options.run.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    run.train()
    if options.export is not None:
        export(run.model, run.tokenizer, options.export)


if __name__ == "__main__":
    main()

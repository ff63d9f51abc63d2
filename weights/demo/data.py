"""Turn the training documents into batches of token ids.

A helper of `weights.demo.train`, not run by itself. Everything drawn at random is drawn
from a seed and a position, so a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from weights.demo.corpus import Document
from weights.demo.tokenizer import END_OF_TEXT_ID

CHUNK = 1024
CUT_EVERY = 500


def cut(text: str, chance: random.Random) -> list[str]:
    """Cut a text at random places, about every CUT_EVERY characters.

    The parts are tokenised one by one. A prompt may end anywhere, for instance after the
    space of `def `, where tokens of running text never end; the cuts let the model see
    what comes after such an end.
    """
    parts, start = [], 0
    while start < len(text):
        end = start + 1 + int(chance.expovariate(1 / CUT_EVERY))
        parts.append(text[start:end])
        start = end
    return parts


def encode_documents(
    tokenizer: Tokenizer, documents: Sequence[Document], seed: int, code_copies: int = 1
) -> Tensor:
    """Encode the documents, in a random order, into one stream with a mark before each.

    Ordinary code may appear more often than test code: it is what the model is scored on,
    and each copy is cut at other places.
    """
    chance = random.Random(seed)
    order = [d for d in documents for _ in range(1 if d.is_test else code_copies)]
    chance.shuffle(order)
    parts: list[str] = []
    begins: set[int] = set()
    for document in order:
        begins.add(len(parts))
        parts.extend(cut(document.text, chance))
    ids: list[int] = []
    for index, row in enumerate(tokenizer.encode_batch_fast(parts, add_special_tokens=False)):
        if index in begins:
            ids.append(END_OF_TEXT_ID)
        ids.extend(row.ids)
    return torch.tensor(ids, dtype=torch.int32)


class Batches:
    """Chunks of the stream in a new random order, at a new offset, on every pass."""

    def __init__(self, stream: Tensor, seed: int) -> None:
        self.stream = stream
        self.seed = seed
        # One less, for the offset; one token more than a chunk is needed for the targets.
        self.per_pass = (len(stream) - 1) // CHUNK - 1
        if self.per_pass < 1:
            raise ValueError("the stream is shorter than two chunks")
        self.order_of = -1
        self.order = torch.empty(0, dtype=torch.int64)
        self.offset = 0

    def _begin_pass(self, number: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        self.order = torch.randperm(self.per_pass, generator=generator)
        self.offset = int(torch.randint(CHUNK, (1,), generator=generator))
        self.order_of = number

    def chunk(self, index: int) -> Tensor:
        """Return chunk number `index` of the run: CHUNK ids and the one after them."""
        number, place = divmod(index, self.per_pass)
        if number != self.order_of:
            self._begin_pass(number)
        start = self.offset + int(self.order[place]) * CHUNK
        return self.stream[start : start + CHUNK + 1].long()

    def batch(self, first: int, chunks: int, length: int) -> tuple[Tensor, Tensor]:
        """Return ids and targets of `chunks` chunks from `first` on, in rows of `length`."""
        rows = torch.stack([self.chunk(first + i) for i in range(chunks)])
        return rows[:, :-1].reshape(-1, length), rows[:, 1:].reshape(-1, length)

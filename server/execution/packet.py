"""A step's packet while it is put together: the step table, then whatever else the step needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kernels.footprint.row_state import StepTable

Int32 = npt.NDArray[np.int32]


ALIGNMENT = 4  # words: kernels are compiled for aligned tensors, which spans are given as


@dataclass(frozen=True, slots=True)
class Span:
    """Words of a packet."""

    first: int
    length: int

    def __bool__(self) -> bool:
        return self.length > 0

    def of(self, packet: torch.Tensor) -> torch.Tensor:
        return packet[self.first : self.first + self.length]


EMPTY = Span(0, 0)


class PacketDraft:
    """int32 words to upload. Nothing is copied before ``write``."""

    def __init__(self, table: StepTable) -> None:
        self.table = table
        self._head = np.zeros(table.words, dtype=np.int32)
        self._parts: list[Int32] = []
        self.num_words = table.words

    def set_rows(
        self,
        rows: npt.NDArray[np.integer],
        starts: npt.NDArray[np.integer],
        computed: npt.NDArray[np.integer],
        samples: npt.NDArray[np.integer],
        outputs: npt.NDArray[np.integer],
    ) -> None:
        """The step table: what each row of the batch does."""
        table, head = self.table, self._head
        head[0] = len(rows)
        for first, column in (
            (table.rows_at, rows),
            (table.starts_at, starts),
            (table.computed_at, computed),
            (table.samples_at, samples),
            (table.outputs_at, outputs),
        ):
            head[first : first + len(column)] = column

    def put(self, values: npt.NDArray[np.integer] | Sequence[int]) -> Span:
        """Adds words, and says where they will lie."""
        if not len(values):
            return EMPTY
        words = np.asarray(values, dtype=np.int32)
        span = Span(self.num_words, len(words))
        self._parts.append(words)
        filling = -len(words) % ALIGNMENT
        if filling:
            self._parts.append(np.zeros(filling, dtype=np.int32))
        self.num_words += len(words) + filling
        return span

    def put_floats(self, values: Sequence[float]) -> Span:
        return self.put(np.array(values, dtype=np.float32).view(np.int32))

    def write(self, words: Int32) -> None:
        """Fills the first ``num_words`` of ``words``."""
        words[: len(self._head)] = self._head
        if self._parts:
            np.concatenate(self._parts, out=words[len(self._head) : self.num_words])

"""What each row's sampler needs, kept between steps and rebuilt whole when a row is admitted.

Counts and masks over the vocabulary are only kept for rows whose penalties read them, so a greedy
row costs nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from kernels import SamplingTensors, SparseBias, SparseIds, as_int64, derive_key
from server.engine.request import SamplingParams

Int64 = npt.NDArray[np.int64]


class RowSampling:
    """Sampling parameters and penalty state by row, in the buffers of the layout."""

    def __init__(self, buffers: Mapping[str, torch.Tensor], *, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._floats = buffers["row_sampling"].numpy()  # [6, rows]
        self._top_k = buffers["row_top_k"].numpy()
        self._keys = buffers["row_keys"].numpy()
        self._output_counts = buffers["output_counts"]  # [rows, V]
        self._prompt_mask = buffers["prompt_mask"]  # [rows, V]
        self.params: list[SamplingParams | None] = [None] * len(self._keys)

    def admit(
        self,
        row: int,
        params: SamplingParams,
        *,
        choice: int,
        prompt: npt.NDArray[np.int32],
        output: npt.NDArray[np.int32],
    ) -> None:
        """Sets a row up: parameters, key, and the penalties' view of its tokens."""
        self.params[row] = params
        self._floats[:, row] = (
            params.temperature,
            params.top_p,
            params.min_p,
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty,
        )
        self._top_k[row] = params.top_k
        self._keys[row] = as_int64(derive_key(params.seed, choice))
        if _counts_output(params):
            counts = np.bincount(output, minlength=self._vocab_size)
            self._output_counts[row].copy_(torch.from_numpy(counts))
        if params.repetition_penalty != 1.0:
            self._prompt_mask[row].zero_()
            self._prompt_mask[row, torch.from_numpy(prompt.astype(np.int64))] = True

    def count(self, row: int, token_id: int) -> None:
        """Counts a token that the row generated."""
        params = self.params[row]
        if params is not None and _counts_output(params):
            self._output_counts[row, token_id] += 1

    def release(self, row: int) -> None:
        self.params[row] = None

    def tensors(
        self, rows: Int64, positions: Int64, forbidden: Sequence[tuple[int, ...]]
    ) -> SamplingTensors:
        """The kernel's parameters for ``rows``: only the parts that one of them uses.

        ``positions`` are the rows' output positions; ``forbidden[i]`` the ids that ``rows[i]`` may
        not choose this time.
        """
        temperature, top_p, min_p, presence, frequency, repetition = self._floats[:, rows]
        top_k = self._top_k[rows]
        random = bool((temperature > 0).any())
        repeats = bool((repetition != 1.0).any())
        counts = repeats or bool(((presence != 0.0) | (frequency != 0.0)).any())
        index = torch.from_numpy(rows)
        return SamplingTensors(
            temperature=torch.from_numpy(temperature),
            top_k=_where(random and bool((top_k > 0).any()), top_k),
            top_p=_where(random and bool((top_p < 1.0).any()), top_p),
            min_p=_where(random and bool((min_p > 0.0).any()), min_p),
            presence=_where(bool((presence != 0.0).any()), presence),
            frequency=_where(bool((frequency != 0.0).any()), frequency),
            repetition=_where(repeats, repetition),
            output_counts=self._output_counts.index_select(0, index) if counts else None,
            prompt_mask=self._prompt_mask.index_select(0, index) if repeats else None,
            key=_where(random, self._keys[rows]),
            position=_where(random, positions),
            bias=self._bias(rows),
            forbidden=_sparse_ids(forbidden),
        )

    def _bias(self, rows: Int64) -> SparseBias | None:
        entries = [
            (index, token_id, value)
            for index, row in enumerate(rows.tolist())
            if (params := self.params[row]) is not None
            for token_id, value in params.logit_bias
        ]
        if not entries:
            return None
        index, ids, values = zip(*entries, strict=True)
        return SparseBias(
            rows=torch.tensor(index, dtype=torch.int64),
            ids=torch.tensor(ids, dtype=torch.int64),
            values=torch.tensor(values, dtype=torch.float32),
        )


def _counts_output(params: SamplingParams) -> bool:
    return (
        params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or params.repetition_penalty != 1.0
    )


def _where(used: bool, values: npt.NDArray[np.generic]) -> torch.Tensor | None:
    return torch.from_numpy(values) if used else None


def _sparse_ids(forbidden: Sequence[tuple[int, ...]]) -> SparseIds | None:
    lengths = [len(ids) for ids in forbidden]
    if not any(lengths):
        return None
    rows = np.repeat(np.arange(len(forbidden)), lengths)
    ids = np.array([token_id for row in forbidden for token_id in row], dtype=np.int64)
    return SparseIds(rows=torch.from_numpy(rows), ids=torch.from_numpy(ids))

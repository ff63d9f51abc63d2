"""From picked hidden states to tokens and log-probabilities, a bounded number of rows at a time.

Logits are rows x vocabulary in float32 and can outweigh everything else in a step, so they exist
for at most ``logit_rows`` rows at once; larger demands are cut. Log-probabilities are of the raw
logits, before temperature, penalties and masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

import kernels
from server.execution.out_of_memory import attribute_oom
from server.execution.row_sampling import RowSampling

Int64 = npt.NDArray[np.int64]
Logits = Callable[[torch.Tensor], torch.Tensor]  # [R, D] -> [R, V] float32
Use = Callable[[torch.Tensor, slice], None]


@dataclass(frozen=True, slots=True)
class SampleWork:
    """Rows that choose a token: entry i of each concerns row ``rows[i]``."""

    rows: Int64  # [S]
    output_positions: Int64  # [S] index of the token among the row's generated ones
    forbidden: Sequence[tuple[int, ...]]
    num_top: Sequence[int | None]  # alternatives to report; None reports nothing


@dataclass(frozen=True, slots=True)
class Sampled:
    """Chosen tokens, and log-probabilities for the rows that asked (the rest hold zeros)."""

    token_ids: Int64  # [S]
    non_finite: npt.NDArray[np.bool_]  # [S]
    logprob_ids: npt.NDArray[np.int32]  # [S, 1 + most alternatives]
    logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities of given tokens: each [P, 1 + num_top]."""

    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]


class Sampler:
    """``logit_rows`` rows of logits exist at once, and ``sample_rows`` of them are worked on at
    once: the temporaries of sampling and ranking outweigh the logits several times."""

    def __init__(
        self, logits: Logits, rows: RowSampling, *, logit_rows: int, sample_rows: int
    ) -> None:
        self._logits = logits
        self._rows = rows
        self._logit_rows = logit_rows
        self._sample_rows = sample_rows

    def sample(self, hidden: torch.Tensor, work: SampleWork) -> Sampled:
        """Chooses one token for each of the S rows of ``hidden`` [S, D]."""
        total = len(work.rows)
        width = 1 + max((top for top in work.num_top if top is not None), default=0)
        out = Sampled(
            token_ids=np.zeros(total, dtype=np.int64),
            non_finite=np.zeros(total, dtype=np.bool_),
            logprob_ids=np.zeros((total, width), dtype=np.int32),
            logprobs=np.zeros((total, width), dtype=np.float32),
        )

        def choose(logits: torch.Tensor, part: slice) -> None:
            self._sample_part(logits, work, part, out)

        self._each_part(hidden, work.rows, choose)
        return out

    def score(self, hidden: torch.Tensor, token_ids: Int64, rows: Int64, num_top: int) -> Scored:
        """Log-probability of ``token_ids[i]`` after position i of ``hidden`` [P, D], asked for by
        ``rows[i]``."""
        total = len(token_ids)
        ids = np.zeros((total, 1 + num_top), dtype=np.int32)
        logprobs = np.zeros((total, 1 + num_top), dtype=np.float32)
        targets = torch.from_numpy(token_ids)

        def rank(logits: torch.Tensor, part: slice) -> None:
            top_ids, top = kernels.token_logprobs(logits, targets[part], num_top)
            ids[part], logprobs[part] = top_ids.numpy(), top.numpy()

        self._each_part(hidden, rows, rank)
        return Scored(ids, logprobs)

    def _each_part(self, hidden: torch.Tensor, rows: Int64, use: Use) -> None:
        """Calls ``use`` with the logits of all rows of ``hidden``, a part at a time, and which
        these are. What finds no memory is laid to the ``rows`` of the part."""
        for start in range(0, len(hidden), self._logit_rows):
            with attribute_oom(rows[start : start + self._logit_rows].tolist()):
                logits = self._logits(hidden[start : start + self._logit_rows])
            for first in range(0, len(logits), self._sample_rows):
                part = logits[first : first + self._sample_rows]
                where = slice(start + first, start + first + len(part))
                with attribute_oom(rows[where].tolist()):
                    use(part, where)

    def _sample_part(
        self, logits: torch.Tensor, work: SampleWork, part: slice, out: Sampled
    ) -> None:
        params = self._rows.tensors(
            work.rows[part], work.output_positions[part], work.forbidden[part]
        )
        chosen = kernels.sample(logits, params)
        out.token_ids[part] = chosen.token_ids.numpy()
        out.non_finite[part] = chosen.non_finite.numpy()
        asked = [i for i, top in enumerate(work.num_top[part]) if top is not None]
        if not asked:
            return
        index = torch.tensor(asked)
        ids, logprobs = kernels.token_logprobs(
            logits if len(asked) == len(logits) else logits.index_select(0, index),
            chosen.token_ids.index_select(0, index),
            out.logprobs.shape[1] - 1,
        )
        rows = np.array(asked) + part.start
        out.logprob_ids[rows], out.logprobs[rows] = ids.numpy(), logprobs.numpy()

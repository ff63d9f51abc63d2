"""From logits to tokens and log-probabilities on a device, without the host waiting.

The host has decided what has to be run (server.execution.gpu_sampling); what comes of it is copied
into pinned memory, to be read when the step is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

import kernels
from kernels import SamplingTensors, SparseBias, SparseIds
from server.execution.gpu_sampling import (
    FREQUENCY,
    MIN_P,
    PRESENCE,
    REPETITION,
    TEMPERATURE,
    TOP_P,
    Part,
    SampleWork,
    SamplingLimits,
)
from server.execution.out_of_memory import attribute_oom

Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # [R, D], out [R, V] -> out


class DeviceSampler:
    """Runs on the device's stream: nothing here waits or reads back.

    ``buffers`` are the layout's by name. Log-probabilities go straight into the pinned tensors of
    the step's slot.
    """

    def __init__(
        self, buffers: Mapping[str, torch.Tensor], logits: Logits, limits: SamplingLimits
    ) -> None:
        self._rows = buffers["row_state"]
        self._counts = buffers["output_counts"]
        self._mask = buffers["prompt_mask"]
        self._floats = buffers["step_floats"]
        self._top_k = buffers["step_top_k"]
        self._keys = buffers["step_keys"]
        self._positions = buffers["step_output_positions"]
        self._logits_buffer = buffers["logits"]
        self._token_ids = buffers["chosen_ids"]
        self._non_finite = buffers["chosen_non_finite"]
        self._logits = logits
        self._limits = limits

    def score(
        self,
        work: SampleWork,
        packet: torch.Tensor,
        hidden: torch.Tensor,
        pinned: Mapping[str, torch.Tensor],
    ) -> None:
        """Log-probabilities of the prompt tokens that follow ``hidden`` [P, D]."""
        # As wide as chosen tokens are, so that one compiled kernel reports on either.
        targets = self._rows.view(-1).index_select(0, work.targets.of(packet)).long()
        for start in range(0, work.num_scored, self._limits.logit_rows):
            stop = min(start + self._limits.logit_rows, work.num_scored)
            with attribute_oom(work.scored_rows[start:stop]):
                logits = self._logits(hidden[start:stop], self._logits_buffer[: stop - start])
                width = work.scored_width
                reported = kernels.token_logprobs(logits, targets[start:stop], width - 1)
                _download(reported, pinned, "scored", start, width)

    def choose(
        self,
        work: SampleWork,
        packet: torch.Tensor,
        hidden: torch.Tensor | None,
        pinned: Mapping[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [S] int64 and non-finite flags [S] bool, in persistent buffers.

        ``hidden`` is [S, D]; None where the logits of all rows are in their buffer already.
        """
        for part in work.parts:
            with attribute_oom(work.sampled_rows[part.start : part.stop]):
                self._choose_part(work, part, packet, hidden, pinned)
        sampled = slice(0, work.num_sampled)
        return self._token_ids[sampled], self._non_finite[sampled]

    def _choose_part(
        self,
        work: SampleWork,
        part: Part,
        packet: torch.Tensor,
        hidden: torch.Tensor | None,
        pinned: Mapping[str, torch.Tensor],
    ) -> None:
        rows = slice(part.start, part.stop)
        if hidden is None:
            logits = self._logits_buffer[rows]
        else:
            room = self._logits_buffer[: part.stop - part.start]
            logits = self._logits(hidden[rows], room)
        chosen = kernels.sample(logits, self._tensors(work, part, packet))
        self._token_ids[rows].copy_(chosen.token_ids)
        self._non_finite[rows].copy_(chosen.non_finite)
        if part.asked:
            reported = self._reported(part, packet, logits, chosen.token_ids, work.asked_width)
            _download(reported, pinned, "chosen", part.asked_before, work.asked_width)

    def _tensors(self, work: SampleWork, part: Part, packet: torch.Tensor) -> SamplingTensors:
        """The kernel's parameters: only the parts that some row uses."""
        rows = slice(part.start, part.stop)
        counts = mask = None
        if part.penalises:
            index = work.rows.of(packet)[rows]
            counts, mask = self._counts.index_select(0, index), self._mask.index_select(0, index)
        return SamplingTensors(
            temperature=self._floats[TEMPERATURE, rows],
            top_k=self._top_k[rows] if part.truncates else None,
            top_p=self._floats[TOP_P, rows] if part.truncates else None,
            min_p=self._floats[MIN_P, rows] if part.truncates else None,
            presence=self._floats[PRESENCE, rows] if part.penalises else None,
            frequency=self._floats[FREQUENCY, rows] if part.penalises else None,
            repetition=self._floats[REPETITION, rows] if part.penalises else None,
            output_counts=counts,
            prompt_mask=mask,
            key=self._keys[rows] if part.random else None,
            position=self._positions[rows] if part.random else None,
            bias=_sparse_bias(part, packet),
            forbidden=_sparse_ids(part, packet),
        )

    def _reported(
        self,
        part: Part,
        packet: torch.Tensor,
        logits: torch.Tensor,
        token_ids: torch.Tensor,
        width: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the part's rows that ask; all widths are the widest."""
        if part.asked.length < part.stop - part.start:
            index = part.asked.of(packet)
            logits, token_ids = logits.index_select(0, index), token_ids.index_select(0, index)
        return kernels.token_logprobs(logits, token_ids, width - 1)


def _sparse_bias(part: Part, packet: torch.Tensor) -> SparseBias | None:
    rows, ids, values = part.bias
    if not rows:
        return None
    return SparseBias(
        rows=rows.of(packet).long(),
        ids=ids.of(packet).long(),
        values=values.of(packet).view(torch.float32),
    )


def _sparse_ids(part: Part, packet: torch.Tensor) -> SparseIds | None:
    rows, ids = part.forbidden
    return SparseIds(rows.of(packet).long(), ids.of(packet).long()) if rows else None


def _download(
    reported: tuple[torch.Tensor, torch.Tensor],
    pinned: Mapping[str, torch.Tensor],
    kind: str,
    first: int,
    width: int,
) -> None:
    """Into rows ``first`` and after of the step's report, rows of ``width``."""
    ids, logprobs = reported
    span = slice(first * width, (first + ids.shape[0]) * width)
    name = {"chosen": "chosen_logprob_ids", "scored": "scored_ids"}[kind]
    pinned[name][span].copy_(ids.reshape(-1), non_blocking=True)
    pinned[f"{kind}_logprobs"][span].copy_(logprobs.reshape(-1), non_blocking=True)

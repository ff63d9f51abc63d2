"""From logits to tokens and log-probabilities, a bounded number of rows at a time.

Logits are rows x vocabulary in float32 and can outweigh everything else in a step, so they exist
for so many rows at once as LogitLimits says; larger demands are cut. The host has decided what has
to be run (server.execution.sampling_batch); what comes of it goes into the step's slot, to be read
when the step is done. Log-probabilities are of the raw logits, before temperature, penalties and
masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

import kernels
from kernels import SampleOutput, SamplingTensors, SparseBias, SparseIds
from server.execution.out_of_memory import attribute_oom
from server.execution.sampling_batch import Part, SampleWork
from server.memory.runner_buffers import LogitLimits

TEMPERATURE, TOP_P, MIN_P, PRESENCE, FREQUENCY, REPETITION = range(6)  # as row_state.FLOATS_AT
Logits = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]  # [R, D], out -> [R, V]


class Sampler:
    """Runs on the device: nothing here waits or reads back.

    ``buffers`` are the layout's by name. Log-probabilities go straight into the tensors of the
    step's slot. Where decode steps are captured, logits always lie in their own buffer.
    """

    def __init__(
        self, buffers: Mapping[str, torch.Tensor], logits: Logits, limits: LogitLimits
    ) -> None:
        self._rows = buffers["row_state"]
        self._counts = buffers["output_counts"]
        self._mask = buffers["prompt_mask"]
        self._floats = buffers["step_floats"]
        self._top_k = buffers["step_top_k"]
        self._keys = buffers["step_keys"]
        self._positions = buffers["step_output_positions"]
        self._logits_buffer = buffers.get("logits")
        self._logits = logits
        self._limits = limits

    def score(
        self,
        work: SampleWork,
        packet: torch.Tensor,
        hidden: torch.Tensor,
        slot: Mapping[str, torch.Tensor],
    ) -> None:
        """Log-probabilities of the prompt tokens that follow ``hidden`` [P, D]."""
        targets = self._rows.view(-1).index_select(0, work.targets.of(packet)).long()
        width, size = work.scored_width, self._limits.sampled_rows
        for first, last in self._limits.spans(work.num_scored):
            with attribute_oom(work.scored_rows[first:last]):
                logits = self._logits_of(hidden, first, last)
            for start in range(first, last, size):
                stop = min(start + size, last)
                with attribute_oom(work.scored_rows[start:stop]):
                    part = logits[start - first : stop - first]
                    reported = kernels.token_logprobs(part, targets[start:stop], width - 1)
                    _report(reported, slot, "scored", start, width)

    def choose(
        self,
        work: SampleWork,
        packet: torch.Tensor,
        hidden: torch.Tensor | None,
        slot: Mapping[str, torch.Tensor],
    ) -> SampleOutput:
        """A token for each of S rows. ``hidden`` is [S, D]; None where the logits of all rows are
        in their buffer already."""
        chosen: list[SampleOutput] = []
        for (first, last), parts in zip(
            self._limits.spans(work.num_sampled), work.parts, strict=True
        ):
            with attribute_oom(work.sampled_rows[first:last]):
                logits = self._logits_of(hidden, first, last)
            for part in parts:
                with attribute_oom(work.sampled_rows[part.start : part.stop]):
                    at = slice(part.start - first, part.stop - first)
                    chosen.append(self._choose_part(work, part, packet, logits[at], slot))
        if len(chosen) == 1:
            return chosen[0]
        return SampleOutput(
            torch.cat([part.token_ids for part in chosen]),
            torch.cat([part.non_finite for part in chosen]),
        )

    def _logits_of(self, hidden: torch.Tensor | None, first: int, last: int) -> torch.Tensor:
        room = None if self._logits_buffer is None else self._logits_buffer[: last - first]
        if hidden is not None:
            return self._logits(hidden[first:last], room)
        if room is None:
            raise ValueError("the step's logits are asked for before its model has run")
        return room

    def _choose_part(
        self,
        work: SampleWork,
        part: Part,
        packet: torch.Tensor,
        logits: torch.Tensor,
        slot: Mapping[str, torch.Tensor],
    ) -> SampleOutput:
        chosen = kernels.sample(logits, self._tensors(work, part, packet))
        if part.asked:
            reported = self._reported(part, packet, logits, chosen.token_ids, work.asked_width)
            _report(reported, slot, "chosen", part.asked_before, work.asked_width)
        return chosen

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


def _report(
    reported: tuple[torch.Tensor, torch.Tensor],
    slot: Mapping[str, torch.Tensor],
    kind: str,
    first: int,
    width: int,
) -> None:
    """Into rows ``first`` and after of the step's report, rows of ``width``."""
    ids, logprobs = reported
    span = slice(first * width, (first + ids.shape[0]) * width)
    name = {"chosen": "chosen_logprob_ids", "scored": "scored_ids"}[kind]
    slot[name][span].copy_(ids.reshape(-1), non_blocking=True)
    slot[f"{kind}_logprobs"][span].copy_(logprobs.reshape(-1), non_blocking=True)

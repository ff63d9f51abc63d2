"""Choosing tokens on a GPU: two launches, and three more where a row may truncate.

What a batch asks for is known from which tensors are given; what a row asks for is read on the
device. Nothing is read back, and grids depend on shapes alone, so a call can be captured. Rows
with a temperature above 0 need ``key`` and ``position``; without them such a row is answered as
not finite, since whether there is one cannot be known here. Entries of the sparse lists whose row
lies outside the batch are padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import triton
from torch import Tensor

from kernels import tuning
from kernels.footprint.gpu_sampling import SamplingScratch
from kernels.gpu import sampling_cases
from kernels.gpu.compile_case import CompileCase
from kernels.gpu.interpreter import interpreted
from kernels.gpu.logprobs import token_logprobs
from kernels.gpu.sampling_scratch import padded_tiles, regions_of
from kernels.jit import sampling as jit
from kernels.jit import truncation as jit_truncation
from kernels.types import SampleOutput, SamplingTensors, SparseBias, SparseIds

T = TypeVar("T", Tensor, Tensor | None)

__all__ = ["compile_cases", "sample", "token_logprobs"]


def sample(logits: Tensor, params: SamplingTensors) -> SampleOutput:
    return run(logits, params, scratch_of(logits, params))


def scratch_of(logits: Tensor, params: SamplingTensors) -> SamplingScratch:
    """The scratch that a call takes: what is not asked for takes none."""
    entries = _length(params.bias) + _length(params.forbidden)
    return SamplingScratch(
        logits.shape[0],
        logits.shape[1],
        changes=bool(entries) or _has_penalty(params) or params.bitmask is not None,
        entries=entries,
        truncates=params.key is not None
        and any(value is not None for value in (params.top_k, params.top_p, params.min_p)),
    )


def run(logits: Tensor, params: SamplingTensors, scratch: SamplingScratch) -> SampleOutput:
    """``sample`` with given tile sizes."""
    rows, device = scratch.rows, logits.device
    token_ids = torch.empty(rows, dtype=torch.int64, device=device)
    non_finite = torch.empty(rows, dtype=torch.bool, device=device)
    if rows:
        if params.key is not None and params.position is None:
            raise ValueError("params.key is given without params.position, which it needs")
        regions = regions_of(scratch, device)
        call = _Call(_dense(logits), params, scratch, regions, token_ids, non_finite)
        if scratch.entries:
            call.link()
        call.scan()
        call.finish()
        if scratch.truncates:
            call.truncate()
    return SampleOutput(token_ids, non_finite)


@dataclass(frozen=True, slots=True)
class _Call:
    logits: Tensor
    params: SamplingTensors
    scratch: SamplingScratch
    regions: Mapping[str, Tensor]
    token_ids: Tensor
    non_finite: Tensor

    def link(self) -> None:
        """Threads the sparse lists through the tiles that they touch."""
        heads = self.regions["heads"].fill_(-1)
        bias, forbidden = self.params.bias, self.params.forbidden
        tuned = self._tuned("link_sparse")
        jit.link_sparse[(triton.cdiv(self.scratch.entries, tuned.blocks["BLOCK"]),)](
            _part(bias, "rows"),
            _part(bias, "ids"),
            _part(forbidden, "rows"),
            _part(forbidden, "ids"),
            heads,
            self.regions["links"],
            self.scratch.rows,
            self.scratch.vocab,
            _length(bias),
            self.scratch.entries,
            self.scratch.tiles,
            TILE=self.scratch.tile,
            BLOCK=tuned.blocks["BLOCK"],
            **tuned.launch,
        )

    def scan(self) -> None:
        params, scratch, regions = self.params, self.scratch, self.regions
        penalised = _has_penalty(params)
        counts = _dense(params.output_counts) if penalised else None
        prompt = _dense(params.prompt_mask) if params.repetition is not None else None
        bitmask = _dense(params.bitmask)
        linked = scratch.entries > 0
        tuned = self._tuned("scan_tiles")
        jit.scan_tiles[(scratch.rows * scratch.tiles,)](
            self.logits,
            *self._row_params(),
            _flat(params.presence),
            _flat(params.frequency),
            _flat(params.repetition),
            _flat(params.key),
            _flat(params.position),
            counts,
            None if prompt is None else prompt.view(torch.uint8),
            bitmask,
            regions.get("heads"),
            regions["links"] if linked else None,
            _part(params.bias, "ids"),
            _part(params.bias, "values"),
            _part(params.forbidden, "ids"),
            regions.get("processed"),
            regions["tile_best"],
            regions["tile_id"],
            regions["tile_score"],
            regions.get("tile_mass"),
            regions.get("group_best"),
            scratch.vocab,
            scratch.tiles,
            _length(params.bias),
            self.logits.stride(0),
            0 if counts is None else counts.stride(0),
            0 if prompt is None else prompt.stride(0),
            0 if bitmask is None else bitmask.stride(0),
            TILE=scratch.tile,
            GROUP=scratch.group,
            INTERPRETED=interpreted(),
            **tuned.launch,
        )

    def finish(self) -> None:
        scratch, regions = self.scratch, self.regions
        tuned = self._tuned("finish_rows")
        jit.finish_rows[(scratch.rows,)](
            *self._logits(),
            *self._row_params(),
            _flat(self.params.key),
            _flat(self.params.position),
            regions["tile_best"],
            regions["tile_id"],
            regions["tile_score"],
            regions["row_best"],
            self.token_ids,
            self.non_finite.view(torch.uint8),
            scratch.vocab,
            scratch.tiles,
            self.logits.stride(0),
            TILE=scratch.tile,
            TILES=padded_tiles(scratch.tiles),
            STEP=min(tuned.blocks["STEP"], scratch.tile),
            INTERPRETED=interpreted(),
            **tuned.launch,
        )

    def truncate(self) -> None:
        scratch, regions = self.scratch, self.regions
        limits = (regions["row_best"], regions["limits"], regions["survivor_counts"])
        survivors = (regions["survivor_keys"], regions["survivor_ids"], regions["totals"])
        tuned = self._tuned("bound_rows")
        jit_truncation.bound_rows[(scratch.rows,)](
            *self._row_params(),
            regions["row_best"],
            regions["tile_best"],
            regions["tile_mass"] if self.params.top_p is not None else None,
            regions["group_best"],
            regions["limits"],
            regions["survivor_counts"],
            regions["totals"],
            scratch.vocab,
            scratch.tiles,
            TILES=padded_tiles(scratch.tiles),
            PER_TILE=scratch.tile // scratch.group,
            **tuned.launch,
        )
        tuned = self._tuned("collect_tiles")
        jit_truncation.collect_tiles[(scratch.rows * scratch.tiles,)](
            *self._logits(),
            *self._row_params(),
            *limits,
            *survivors,
            scratch.vocab,
            scratch.tiles,
            self.logits.stride(0),
            TILE=scratch.tile,
            CAPACITY=scratch.capacity,
            **tuned.launch,
        )
        tuned = self._tuned("draw_truncated")
        jit_truncation.draw_truncated[(scratch.rows,)](
            *self._logits(),
            *self._row_params(),
            _flat(self.params.key),
            _flat(self.params.position),
            regions["row_best"],
            regions["survivor_counts"],
            *survivors,
            self.token_ids,
            scratch.vocab,
            scratch.tiles,
            self.logits.stride(0),
            TILE=scratch.tile,
            STEP=min(tuned.blocks["STEP"], scratch.tile),
            CAPACITY=scratch.capacity,
            INTERPRETED=interpreted(),
            **tuned.launch,
        )

    def _tuned(self, kernel: str) -> tuning.Tuning:
        drawing = "greedy" if self.params.key is None else "draw"
        work = "changed" if self.scratch.changes else drawing
        return tuning.lookup(kernel, tuning.architecture(self.logits.device), work=work)

    def _logits(self) -> tuple[Tensor | None, ...]:
        return self.logits, self.regions.get("processed"), self.regions.get("heads")

    def _row_params(self) -> tuple[Tensor | None, ...]:
        truncated = (self.params.top_k, self.params.top_p, self.params.min_p)
        return _flat(self.params.temperature), *(
            _flat(value) if self.scratch.truncates else None for value in truncated
        )


def _has_penalty(params: SamplingTensors) -> bool:
    penalties = (params.presence, params.frequency, params.repetition)
    return any(value is not None for value in penalties)


def _length(sparse: SparseBias | SparseIds | None) -> int:
    return 0 if sparse is None else sparse.rows.shape[0]


def _part(sparse: SparseBias | SparseIds | None, name: str) -> Tensor | None:
    """A list of a sparse parameter; None where it has no entries."""
    return _flat(getattr(sparse, name)) if _length(sparse) else None


def _flat(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.contiguous()


def _dense(table: T) -> T:
    """The table, or a copy of it where the columns of a row do not lie side by side."""
    if table is None or table.shape[1] == 1 or table.stride(1) == 1:
        return table
    return table.contiguous()


def compile_cases(arch: int) -> Iterator[CompileCase]:
    yield from sampling_cases.cases(arch)

"""Decode attention's scratch and work lists: views into the workspace, filled on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kernels import tuning
from kernels.dispatch import gpu_index
from kernels.footprint.attention import AttentionShape
from kernels.footprint.gpu_attention import (
    HEADER_WORDS,
    MAX_PROGRAMS,
    START_WORDS,
    decode_regions,
    list_words,
)
from kernels.gpu.compile_case import CompileCase
from kernels.jit.decode_work import build_decode_work
from kernels.types import AttentionMetadata

ROWS = 128  # rows that build_decode_work looks at together
PROGRAMS = 16  # starts that one of its programs finds
WARPS = 4
INTERPRETED_PROGRAMS = 3  # times PER_SM: enough to split and to join; each takes milliseconds


@dataclass(frozen=True, slots=True)
class WorkList:
    """Views into the workspace; what they hold is told in kernels.jit.decode_work."""

    header: Tensor  # [4] int32
    program_starts: Tensor  # [MAX_PROGRAMS, 4] int32
    records: Tensor  # [max_num_seqs, 4] int32


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """The workspace, cut as kernels.footprint.gpu_attention counts it."""

    lists: Tensor  # int32, a WorkList for each window
    counters: Tensor  # [MAX_PROGRAMS] int32
    partials: Tensor  # [2 * MAX_PROGRAMS, group, head_dim] float32
    maxima: Tensor  # [2 * MAX_PROGRAMS, group] float32
    sums: Tensor  # [2 * MAX_PROGRAMS, group] float32


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """A step's work on a GPU, shared by all layers.

    Layers may differ in their window, and a window shortens the runs that the list is made of, so
    that there is a list for each of ``shape.windows``, in their order.
    """

    shape: AttentionShape
    scratch: DecodeScratch
    programs: int
    tile: int
    least_tiles: int

    def list_for(self, window: int) -> WorkList:
        """The work list of layers with this window.

        Raises ValueError where the shape told of no such layers.
        """
        if window not in self.shape.windows:
            raise ValueError(
                f"a layer has window {window}; the shape that prepare_attention was given has"
                f" windows {self.shape.windows}"
            )
        return self._place(self.shape.windows.index(window))

    def build(self, metadata: AttentionMetadata) -> None:
        """Fills every list from the step's rows, on the device; nothing is waited for."""
        for window in self.shape.windows:
            self._build(self.list_for(window), window, metadata)

    def _place(self, index: int) -> WorkList:
        words = list_words(self.shape.max_num_seqs)
        room = self.scratch.lists[index * words : (index + 1) * words]
        starts = HEADER_WORDS + START_WORDS * MAX_PROGRAMS
        return WorkList(
            header=room[:HEADER_WORDS],
            program_starts=room[HEADER_WORDS:starts],
            records=room[starts:],
        )

    def _build(self, built: WorkList, window: int, metadata: AttentionMetadata) -> None:
        build_decode_work[(triton.cdiv(self.programs, PROGRAMS),)](
            metadata.query_start_loc,
            metadata.seq_lens,
            built.header,
            built.program_starts,
            built.records,
            self.scratch.counters,
            metadata.seq_lens.shape[0],
            window,
            self.programs,
            self.least_tiles,
            NUM_KV_HEADS=self.shape.num_kv_heads,
            HAS_WINDOW=window > 0,
            TILE=self.tile,
            ROWS=ROWS,
            PROGRAMS=PROGRAMS,
            num_warps=WARPS,
            num_stages=1,
        )


def plan(shape: AttentionShape, buffer: Tensor) -> AttentionWork:
    """The work of a step before any list. Raises ValueError where the workspace is too small."""
    sizes = decode_regions(
        group=shape.group,
        head_dim=shape.head_dim,
        max_num_seqs=shape.max_num_seqs,
        windows=len(shape.windows),
    )
    needed = sizes.total
    if buffer.numel() < needed:
        raise ValueError(
            f"workspace has {buffer.numel()} bytes; this step needs {needed}: make the workspace"
            " from the shape that prepare_attention was given"
        )
    blocks = work_blocks(
        tuning.architecture(buffer.device), shape.head_dim, shape.group, shape.element_bytes
    )
    lists, counters, *floats = buffer[:needed].split_with_sizes(sizes.sizes)
    partials, maxima, sums = (part.view(torch.float32) for part in floats)
    return AttentionWork(
        shape=shape,
        scratch=DecodeScratch(
            lists.view(torch.int32), counters.view(torch.int32), partials, maxima, sums
        ),
        programs=min(MAX_PROGRAMS, blocks["PER_SM"] * _multiprocessors(buffer.device)),
        tile=blocks["TILE"],
        least_tiles=blocks["LEAST_TILES"],
    )


def work_blocks(arch: int, head_dim: int, group: int, element_bytes: int) -> Mapping[str, int]:
    """TILE tokens of a key tile; PER_SM programs for each multiprocessor; LEAST_TILES of a
    program's share."""
    return tuning.lookup(
        "paged_decode_work", arch, head_dim=head_dim, group=group, element_bytes=element_bytes
    ).blocks


def _multiprocessors(device: torch.device) -> int:
    index = gpu_index(device)
    if index is None:
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(index).multi_processor_count


def compile_cases(arch: int) -> Iterator[CompileCase]:
    pointers = (
        "query_start_loc",
        "seq_lens",
        "header",
        "program_starts",
        "records",
        "counters",
    )
    usual = work_blocks(arch, head_dim=128, group=4, element_bytes=2)["TILE"]
    small = work_blocks(arch, head_dim=64, group=4, element_bytes=4)["TILE"]
    for tile, window in ((usual, False), (usual, True), (small, False)):
        yield CompileCase(
            name=f"build_decode_work/{'window' if window else 'all'}-tile{tile}",
            fn=build_decode_work,
            signature=dict.fromkeys(pointers, "*i32")
            | dict.fromkeys(("rows", "window", "programs", "least_tiles"), "i32"),
            constexprs={
                "NUM_KV_HEADS": 8,
                "HAS_WINDOW": window,
                "TILE": tile,
                "ROWS": ROWS,
                "PROGRAMS": PROGRAMS,
            },
            num_warps=WARPS,
            num_stages=1,
            aligned=frozenset(pointers),
        )

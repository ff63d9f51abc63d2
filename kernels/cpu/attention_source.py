"""Where tiled attention on a CPU finds its keys and values: the indexes of a segment's gather.

A step's groups of the KV cache have the same rows and differ in their block tables alone, so that
one StepRows and its work lists serve them all, and each group adds these indexes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.cpu.attention_work import Segment, StepRows, Wave, WorkList
from kernels.footprint.attention import AttentionShape

# For every wave, for every segment: rows of the gather's source, [parts * items * Hkv * blocks]
Gathers = tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """A step's work on a CPU for one group of the KV cache.

    A window's list is made when the first layer asks for it, and kept for the step's others;
    ``lists`` are shared with the step's other groups.
    """

    rows: StepRows
    block_tables: Tensor  # [B, max_blocks] int32
    lists: dict[int, WorkList]
    gathers: dict[int, Gathers] = field(default_factory=dict)

    @property
    def shape(self) -> AttentionShape:
        return self.rows.shape

    def list_for(self, window: int) -> tuple[WorkList, Gathers]:
        """The work of layers with this window, and where its segments' blocks lie.

        Raises ValueError where the shape told of no such layers.
        """
        if window not in self.shape.windows:
            raise ValueError(
                f"a layer has window {window}; the shape that prepare_attention was given has"
                f" windows {self.shape.windows}"
            )
        if window not in self.lists:
            self.lists[window] = self.rows.plan(window)
        if window not in self.gathers:
            self.gathers[window] = tuple(
                tuple(self._gather(wave, segment) for segment in wave.segments)
                for wave in self.lists[window].waves
            )
        return self.lists[window], self.gathers[window]

    def _gather(self, wave: Wave, segment: Segment) -> Tensor:
        """Rows of a cache layer seen as [blocks' rows, block_size * head_dim]."""
        shape = self.shape
        columns = wave.blocks.columns(segment, shape.block_size)
        rows = wave.blocks.rows[segment.first : segment.last]
        blocks = self.block_tables[rows.unsqueeze(1), columns].long()
        heads = torch.arange(shape.num_kv_heads).unsqueeze(1)
        halves = torch.arange(2).view(2, 1, 1, 1) * shape.num_kv_heads
        rows_of_block = shape.block_stride // (shape.block_size * shape.head_dim)
        return (blocks.unsqueeze(1) * rows_of_block + halves + heads).view(-1)


def sequence_gathers(listed: WorkList, bounds: list[int]) -> Gathers:
    """Rows of keys (or values) seen as [T * Hkv, head_dim]; the block is one token."""
    starts = torch.tensor(bounds[:-1])
    heads = torch.arange(listed.shape.num_kv_heads).unsqueeze(1)

    def gather(wave: Wave, segment: Segment) -> Tensor:
        rows = wave.blocks.rows[segment.first : segment.last]
        tokens = starts[rows].unsqueeze(1) + wave.blocks.columns(segment, 1)
        return (tokens.unsqueeze(1) * listed.shape.num_kv_heads + heads).view(-1)

    return tuple(tuple(gather(wave, segment) for segment in wave.segments) for wave in listed.waves)

"""The state of torch's CUDA allocator, from one of its snapshots: plain data in, integers out.

    segment   reserved from the driver, of one pool: the common one, or one of captured graphs
      block   in use      a tensor's; of its bytes some were asked for, the rest is rounding
              pending     freed, and kept until another stream has come past its last use
              free        to be handed out again

All figures come from one snapshot, so that they agree with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Pool = tuple[int, int]
Segment = Mapping[str, Any]  # as torch.cuda.memory_snapshot gives it


@dataclass(frozen=True, slots=True)
class AllocatorState:
    """Bytes. ``reserved`` is all of it; everything else but ``graphs`` is outside graphs' pools.

    reserved = graphs + in_use + rounding + pending + free
    """

    reserved: int = 0
    graphs: int = 0  # reserved for the pools of captured graphs, whatever is in use there
    in_use: int = 0  # asked for, and held by tensors
    rounding: int = 0
    pending: int = 0
    free: int = 0
    largest_free: int = 0

    @property
    def slack(self) -> int:
        """Reserved, and in no tensor and no graph."""
        return self.rounding + self.pending + self.free


def allocator_state(segments: Iterable[Segment], graph_pools: Iterable[Pool]) -> AllocatorState:
    """Adds up one device's segments."""
    pools = {tuple(pool) for pool in graph_pools}
    reserved = graphs = in_use = rounding = pending = free = largest = 0
    for segment in segments:
        total = int(segment["total_size"])
        reserved += total
        if tuple(segment["segment_pool_id"]) in pools:
            graphs += total
            continue
        for block in segment["blocks"]:
            size = int(block["size"])
            if block["state"] == "active_allocated":
                asked = int(block["requested_size"])
                in_use += asked
                rounding += size - asked
            elif block["state"] == "inactive":
                free += size
                largest = max(largest, size)
            else:
                pending += size
    return AllocatorState(reserved, graphs, in_use, rounding, pending, free, largest)

"""A GPU that knows for certain what each of its bytes is for: driver, processes, torch's allocator.

It answers as NVML does (``use``) and as torch's allocator does (``allocator``), and keeps the truth
beside: ``truth`` is the books as they ought to be. It obeys

    total    = driver + neighbours + own + free
    own      = context + modules + behind + sum of segments
    segment  = tensors (asked for + rounding) + freed and pending + free
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from server.memory.accounting.cuda_allocator import AllocatorState, Pool, allocator_state
from server.memory.accounting.nvml import DeviceUse
from server.memory.kinds import MemoryKind

KIB, MIB = 2**10, 2**20
COMMON: Pool = (0, 0)
GRAPHS: Pool = (0, 7)
_ROUND = 512
_SEGMENT = 2 * MIB
OWN_PID = 4242


class Sight(Enum):
    """What the driver tells this process about processes."""

    LISTED = "by our own number"
    HOST_NUMBERS = "by numbers that are not ours"
    HIDDEN = "nothing"


@dataclass(eq=False)
class Tensor:
    """``kind`` None is in no list of the engine's."""

    asked: int
    kind: MemoryKind | None
    pool: Pool = COMMON


@dataclass
class Block:
    size: int
    tensor: Tensor | None = None
    pending: bool = False

    def as_torch(self) -> dict[str, Any]:
        if self.tensor is not None:
            return {
                "size": self.size,
                "requested_size": self.tensor.asked,
                "state": "active_allocated",
            }
        state = "active_pending_free" if self.pending else "inactive"
        return {"size": self.size, "requested_size": 0, "state": state}


@dataclass
class Segment:
    pool: Pool
    blocks: list[Block]

    @property
    def size(self) -> int:
        return sum(block.size for block in self.blocks)

    def as_torch(self) -> dict[str, Any]:
        return {
            "device": 0,
            "total_size": self.size,
            "segment_pool_id": self.pool,
            "blocks": [block.as_torch() for block in self.blocks],
        }


@dataclass
class SimulatedGpu:
    total: int = 24 * 1024 * MIB
    driver: int = 400 * MIB
    sight: Sight = Sight.LISTED
    neighbours: dict[int, int] = field(default_factory=dict)
    context: int = 0
    modules: int = 0
    behind: int = 0
    segments: list[Segment] = field(default_factory=list)
    settled_modules: int = 0
    libraries: Tensor | None = None  # the one tensor of WORKSPACE that is in no list of ours

    # -- as the libraries answer ------------------------------------------------------------------

    def use(self) -> DeviceUse:
        if self.sight is Sight.HIDDEN:
            return DeviceUse(self.total, self.free, self.driver, None)
        processes = dict(self.neighbours)
        if self.context:
            pid = OWN_PID if self.sight is Sight.LISTED else 99
            processes[pid] = self.own
        return DeviceUse(self.total, self.free, self.driver, processes)

    def allocator(self) -> AllocatorState:
        return allocator_state([segment.as_torch() for segment in self.segments], [GRAPHS])

    # -- the truth --------------------------------------------------------------------------------

    @property
    def own(self) -> int:
        reserved = sum(segment.size for segment in self.segments)
        return self.context + self.modules + self.behind + reserved

    @property
    def free(self) -> int:
        return self.total - self.driver - sum(self.neighbours.values()) - self.own

    @property
    def tensors(self) -> list[Tensor]:
        blocks = (block for segment in self.segments for block in segment.blocks)
        return [block.tensor for block in blocks if block.tensor is not None]

    def held(self) -> dict[MemoryKind, int]:
        """What the engine's own lists say."""
        held: dict[MemoryKind, int] = {}
        for tensor in self.tensors:
            if tensor.kind is not None and tensor is not self.libraries:
                held[tensor.kind] = held.get(tensor.kind, 0) + tensor.asked
        return held

    def truth(self) -> dict[MemoryKind, int]:
        common = [one for one in self.segments if one.pool == COMMON]
        asked = [tensor for tensor in self.tensors if tensor.pool == COMMON]
        late = self.modules - self.settled_modules
        hidden = self.sight is Sight.HIDDEN
        unseen = self.modules + self.behind if hidden else 0
        return {
            **dict.fromkeys(MemoryKind, 0),
            **self.held(),
            MemoryKind.GRAPHS: sum(one.size for one in self.segments if one.pool == GRAPHS),
            MemoryKind.WORKSPACE: sum(t.asked for t in asked if t.kind is MemoryKind.WORKSPACE),
            MemoryKind.ALLOCATOR_SLACK: sum(one.size for one in common)
            - sum(tensor.asked for tensor in asked),
            MemoryKind.RUNTIME: self.context + (0 if hidden else self.settled_modules),
            MemoryKind.OTHER_PROCESSES: self.driver + sum(self.neighbours.values()) + unseen,
            MemoryKind.UNACCOUNTED: sum(tensor.asked for tensor in asked if tensor.kind is None)
            + (0 if hidden else self.behind + late),
            MemoryKind.FREE: self.free,
        }

    # -- what happens to it -----------------------------------------------------------------------

    def make_context(self, nbytes: int) -> None:
        self.context = nbytes

    def load_module(self, nbytes: int) -> None:
        self.modules += min(nbytes, self.free)

    def take_behind_the_back(self, nbytes: int) -> None:
        self.behind += min(nbytes, self.free)

    def give_back_behind(self) -> None:
        self.behind = 0

    def neighbour_uses(self, pid: int, nbytes: int) -> None:
        before = self.neighbours.pop(pid, 0)
        if nbytes:
            self.neighbours[pid] = min(nbytes, self.free) if before == 0 else nbytes
            if self.free < 0:
                self.neighbours[pid] += self.free

    def allocate(self, asked: int, kind: MemoryKind | None, pool: Pool = COMMON) -> Tensor | None:
        """From a free block that fits, else from a new segment; None where there is no memory."""
        size = -(-asked // _ROUND) * _ROUND
        tensor = Tensor(asked, kind, pool)
        for segment in self.segments:
            for index, block in enumerate(segment.blocks):
                fits = block.tensor is None and not block.pending and block.size >= size
                if segment.pool == pool and fits:
                    rest = [Block(block.size - size)] if block.size > size else []
                    segment.blocks[index : index + 1] = [Block(size, tensor), *rest]
                    return tensor
        whole = -(-size // _SEGMENT) * _SEGMENT
        if whole > self.free:
            return None
        rest = [Block(whole - size)] if whole > size else []
        self.segments.append(Segment(pool, [Block(size, tensor), *rest]))
        return tensor

    def drop(self, tensor: Tensor, *, pending: bool = False) -> None:
        for segment in self.segments:
            for block in segment.blocks:
                if block.tensor is tensor:
                    block.tensor, block.pending = None, pending

    def streams_come_past(self) -> None:
        for segment in self.segments:
            for block in segment.blocks:
                block.pending = False

    def empty_cache(self) -> None:
        self.segments = [
            segment
            for segment in self.segments
            if segment.pool == GRAPHS
            or any(block.tensor is not None or block.pending for block in segment.blocks)
        ]

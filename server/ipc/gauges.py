"""The gauge block: one page of memory that the engine writes and the API process reads.

    bytes 0..7    sequence: odd while a write is under way, even when it is whole
    bytes 8..15   CRC-32 of the values (Python cannot order its stores, so the sequence alone
                  would not do on a machine with a weaker memory model)
    bytes 16..    the values: signed 64-bit integers in the order of ``names``

The block lives in an anonymous file (memfd) that both processes map. A reader never waits: when it
meets a write under way it looks again a few times, then keeps the last whole reading. A writer that
was killed in the middle is repaired by the next writer.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from itertools import repeat
from types import TracebackType

from server.units import round_up

_SEQUENCE = struct.Struct("<Q")
_HEADER_BYTES = 16
_READ_ATTEMPTS = 50


class GaugeBlock:
    """Named 64-bit integers in shared memory. One writer at a time, any number of readers."""

    def __init__(self, fd: int, names: Sequence[str]) -> None:
        self.fd = fd
        self.names = tuple(names)
        self._values = struct.Struct(f"<{len(self.names)}q")
        self._map = mmap.mmap(fd, self.size_bytes(len(self.names)))
        self._last: dict[str, int] = dict.fromkeys(self.names, 0)

    @classmethod
    def create(cls, names: Sequence[str]) -> GaugeBlock:
        """A new block of zeros, whole and readable."""
        fd = os.memfd_create("quire-gauges", os.MFD_CLOEXEC)
        os.ftruncate(fd, cls.size_bytes(len(names)))
        block = cls(fd, names)
        block.write({})
        return block

    @staticmethod
    def size_bytes(count: int) -> int:
        needed = _HEADER_BYTES + 8 * count
        return round_up(needed, mmap.PAGESIZE)

    def write(self, values: Mapping[str, int]) -> None:
        """Publishes all values together; a name that is left out becomes 0."""
        body = self._values.pack(*map(values.get, self.names, repeat(0)))
        (sequence,) = _SEQUENCE.unpack_from(self._map, 0)
        _SEQUENCE.pack_into(self._map, 0, sequence | 1)
        _SEQUENCE.pack_into(self._map, 8, zlib.crc32(body))
        self._map[_HEADER_BYTES : _HEADER_BYTES + len(body)] = body
        _SEQUENCE.pack_into(self._map, 0, (sequence | 1) + 1)

    def read(self) -> dict[str, int]:
        """The latest whole reading. Never waits for the writer."""
        end = _HEADER_BYTES + self._values.size
        for attempt in range(_READ_ATTEMPTS):
            (before,) = _SEQUENCE.unpack_from(self._map, 0)
            (checksum,) = _SEQUENCE.unpack_from(self._map, 8)
            body = self._map[_HEADER_BYTES:end]
            (after,) = _SEQUENCE.unpack_from(self._map, 0)
            if before == after and before % 2 == 0 and zlib.crc32(body) == checksum:
                self._last = dict(zip(self.names, self._values.unpack(body), strict=True))
                break
            if attempt > _READ_ATTEMPTS // 2:
                time.sleep(0)  # the writer lost its core in the middle: let it run
        return dict(self._last)

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)

    def __enter__(self) -> GaugeBlock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

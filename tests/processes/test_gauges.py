"""The gauge block: a reader sees a whole write or the one before it, and never waits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.ipc.gauges import GaugeBlock

ROOT = Path(__file__).parents[2]
NAMES = tuple(f"value{i}" for i in range(40))


def test_what_is_written_is_read() -> None:
    with GaugeBlock.create(("a", "b")) as block:
        assert block.read() == {"a": 0, "b": 0}
        block.write({"a": -5, "b": 2**62})
        assert block.read() == {"a": -5, "b": 2**62}
        block.write({"b": 1})
        assert block.read() == {"a": 0, "b": 1}


WRITER = """
import sys
from server.ipc.gauges import GaugeBlock
names = tuple(f"value{i}" for i in range(40))
block = GaugeBlock(int(sys.argv[1]), names)
print("ready", flush=True)
for count in range(10**9):
    block.write(dict.fromkeys(names, count))
"""


def test_no_reading_mixes_two_writes_of_another_process() -> None:
    with GaugeBlock.create(NAMES) as block:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(block.fd)],
            pass_fds=(block.fd,),
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        seen = set()
        deadline = time.monotonic() + 1.5
        while len(seen) <= 5 or time.monotonic() < deadline:
            values = set(block.read().values())
            assert len(values) == 1
            seen |= values
        writer.kill()
        writer.wait()
        writer.stdout.close()


def torn(block: GaugeBlock) -> None:
    """Leaves the block as a writer does that is killed in the middle."""
    os.pwrite(block.fd, (7).to_bytes(8, "little"), 0)
    os.pwrite(block.fd, (99).to_bytes(8, "little"), 16)


def test_a_writer_killed_in_the_middle_leaves_the_last_whole_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with GaugeBlock.create(("a",)) as block:
        block.write({"a": 1})
        assert block.read() == {"a": 1}
        torn(block)
        pauses: list[float] = []
        monkeypatch.setattr(time, "sleep", pauses.append)
        assert block.read() == {"a": 1}
        assert set(pauses) == {0}  # it lets others run, and waits for nobody
        block.write({"a": 2})  # the next writer repairs it
        assert block.read() == {"a": 2}


def test_values_that_do_not_belong_to_their_sequence_are_not_believed() -> None:
    """On a machine that reorders stores, the sequence may be seen before the values."""
    with GaugeBlock.create(("a",)) as block:
        block.write({"a": 1})
        block.read()
        os.pwrite(block.fd, (99).to_bytes(8, "little"), 16)  # the sequence stays even
        assert block.read() == {"a": 1}

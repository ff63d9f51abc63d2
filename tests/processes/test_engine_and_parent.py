"""The engine process dies with the one that started it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time

import pytest

from tests.living import is_running
from tests.processes.supervised_engine import FAKE, FAST, ROOT, Engine

PARENT = """
import time
from server.ipc.gauges import GaugeBlock
from server.client.process import spawn_engine
engine = spawn_engine(({fake!r}) + ("serves",), GaugeBlock.create(("heartbeat",)).fd)
print(engine.pid, flush=True)
time.sleep(600)
"""


def test_kill_9_of_the_parent_leaves_no_engine_behind() -> None:
    code = PARENT.format(fake=FAKE)
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(1.0)  # the engine has tied itself to its parent by now
    assert is_running(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while is_running(pid):  # pytest's own time-out ends a test that hangs
        time.sleep(0.01)


CHILD = """
import ctypes, os, sys
from server.client.process import die_with_parent
die_with_parent(os.getppid(), os.pipe()[0])
number = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0)  # PR_GET_PDEATHSIG
print(number.value)
"""


def test_the_kernel_kills_an_engine_that_is_too_busy_to_see_its_parent_die() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, cwd=ROOT, timeout=30
    )
    assert result.stdout.strip() == str(int(signal.SIGKILL)), result.stderr


async def test_only_the_main_thread_may_spawn() -> None:
    it = Engine(["serves"], FAST)
    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(it.spawn)
    it.gauges.close()

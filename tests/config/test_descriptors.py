"""The limit of open files against --max-connections."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from server.errors import StartupError
from server.startup.descriptors import PROBE_CONNECTIONS, SPARE, connection_limits


class Limits:
    """A process's limit of open files, as the resource module tells and sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.soft, self.hard = soft, hard
        monkeypatch.setattr(resource, "getrlimit", lambda _: (self.soft, self.hard))
        monkeypatch.setattr(resource, "setrlimit", self._set)
        monkeypatch.setattr(os, "listdir", lambda _: [str(number) for number in range(8)])

    def _set(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        self.soft, self.hard = limits


@pytest.mark.parametrize("soft", [64, 1024, resource.RLIM_INFINITY])
def test_a_soft_limit_that_is_too_low_is_raised(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    limits = Limits(monkeypatch, soft, resource.RLIM_INFINITY)
    found = connection_limits(512)
    assert (found.ordinary, found.probes, found.note) == (512, PROBE_CONNECTIONS, "")
    assert limits.soft == (8 + SPARE + 512 + PROBE_CONNECTIONS if soft == 64 else soft)


@pytest.mark.parametrize(
    ("hard", "asked", "ordinary", "probes"),
    [(48, 512, 6, 2), (256, 512, 162, 54), (600, 512, 420, 140), (4096, 8192, 3800, 256)],
)
def test_fewer_connections_where_the_hard_limit_is_too_low(
    monkeypatch: pytest.MonkeyPatch, hard: int, asked: int, ordinary: int, probes: int
) -> None:
    limits = Limits(monkeypatch, 32, hard)
    found = connection_limits(asked)
    assert limits.soft == hard
    assert (found.ordinary, found.probes) == (ordinary, probes)
    assert found.ordinary + found.probes + 8 + SPARE <= hard
    assert f"(ulimit -n) is {hard}" in found.note
    assert (
        f"--max-connections {asked} needs {8 + SPARE + asked + PROBE_CONNECTIONS} open files"
        in found.note
    )


def test_asking_for_few_is_no_reason_for_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(monkeypatch, 64, 64)
    found = connection_limits(4)
    assert (found.ordinary, found.probes, found.note) == (4, 6, "")


def test_not_even_a_handful_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(monkeypatch, 40, 44)
    with pytest.raises(StartupError, match=r"\(ulimit -n\) is 44: 4 are left .* ulimit -n\."):
        connection_limits(512)


FLOOD = """
import asyncio, logging, resource, sys
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
from dataclasses import replace
from tests.api.api_fakes import make_state
from server.api.app import create_app
from server.api.http import serve
from server.startup.listener import bind

async def main():
    state = make_state(chat_template=None)
    listener = bind("127.0.0.1", 0)
    server = serve(create_app(state), state.limits, state.metrics, drain_timeout_s=1)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0)
    port = listener.getsockname()[1]
    flood = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENTS.replace("PORT", str(port)))
    await flood.wait()
    server.should_exit = True
    await task

CLIENTS = '''
import asyncio, resource
from tests.soak.heavy_clients import GoodClient, silent_connections
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
async def main():
    probe = GoodClient("127.0.0.1", PORT)
    async with silent_connections("127.0.0.1", PORT, 200):
        print("beside", await probe.ask())
    print("after", await probe.ask())
asyncio.run(main())
'''
import os
limit = len(os.listdir("/proc/self/fd")) + 24
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096))
asyncio.run(main())
"""


def test_no_descriptor_left_is_one_line_in_the_log_and_probes_are_answered() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLOOD], capture_output=True, text=True, timeout=120, check=True
    )
    assert "beside 200" in done.stdout
    assert "after 200" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    warnings = [line for line in done.stdout.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "Too many open files" in warnings[0]

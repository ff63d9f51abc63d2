"""Heavy bodies against a real server: its memory stays in the budget, and comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from tests.e2e.server_process import MAX_BODY_BYTES, ServerProcess, wait_until
from tests.soak.heavy_bodies import UnfinishedBodies, large_chats

MIB = 1024 * 1024
WARM = 24  # chats, before what is measured: pools of threads, caches and tables of the first ones


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def highest(pid: int) -> int:
    (line,) = (
        text for text in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in text
    )
    return int(line.split()[1]) * 1024


def budget(server: ServerProcess) -> dict[str, int]:
    tree = httpx.get(f"{server.base_url}/memory", timeout=30).json()
    return dict(tree["host"]["api_process"])


def is_empty(server: ServerProcess) -> bool:
    now = budget(server)
    return not any(now[f"{use}_bytes"] for use in ("bodies", "requests", "events", "work"))


def comes_back(server: ServerProcess, before: int) -> None:
    wait_until(lambda: is_empty(server), 60, "the budget is empty")
    wait_until(
        lambda: resident(server.process.pid) <= 1.1 * before, 60, f"within 10 % of {before} bytes"
    )


def test_unfinished_bodies_stay_in_the_budget_and_go(server: ServerProcess) -> None:
    """400 of 1 MiB, where the shared server keeps 24 MiB for bodies: the rest is told to come again
    before it is read. Before there was a budget all of them were read."""
    pid = server.process.pid

    async def story() -> UnfinishedBodies:
        async with UnfinishedBodies(server.port, 400, MAX_BODY_BYTES - 1) as clients:
            async with asyncio.timeout(60):
                while clients.answers.statuses[503] < 370:
                    await asyncio.sleep(0.01)
            held = await asyncio.to_thread(budget, server)
            assert 16 * MIB <= held["bodies_bytes"] <= 24 * MIB
            small = await asyncio.to_thread(lambda: server.post(prompt="a", max_tokens=1))
            assert small.status_code == 200  # whoever sends little is served all the same
        return clients

    asyncio.run(story())  # once before what is measured: 400 connections at once leave their tables
    wait_until(lambda: is_empty(server), 60, "the budget is empty")
    before = resident(pid)
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    answers = asyncio.run(story()).answers
    assert answers.statuses[503] == answers.retry
    assert highest(pid) - before <= budget(server)["budget_bytes"]
    comes_back(server, before)


def test_large_chats_stay_in_the_budget_and_go(server: ServerProcess) -> None:
    pid = server.process.pid
    asyncio.run(large_chats(server.port, WARM, MAX_BODY_BYTES))
    wait_until(lambda: is_empty(server), 60, "the budget is empty")
    before = resident(pid)
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    answers = asyncio.run(large_chats(server.port, 80, MAX_BODY_BYTES))
    # Too long for the model, or no room for it now; none is answered by a failure.
    assert set(answers.statuses) <= {0, 400, 413, 503}, answers
    assert answers.statuses[503] == answers.retry
    assert highest(pid) - before <= budget(server)["budget_bytes"]
    comes_back(server, before)

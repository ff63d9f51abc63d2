"""Heavy clients in a process of their own: ``python -m tests.soak.heavy KIND PORT``.

They go on until SIGTERM, then say what they were answered. A process of their own, so that the good
client's seconds are the server's and not of a loop that it shares with them.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

from loadtest.client.process import raise_file_limit
from tests.soak.heavy_bodies import UnfinishedBodies, large_chats
from tests.soak.heavy_clients import ChunkSender, silent_connections

_HOST = "127.0.0.1"
_BODY_BYTES = 4 * 1024 * 1024 - 1024  # just below what a server takes by default
_STAYS_S = 20.0  # longer than a server waits for the rest


async def _chunks(port: int, answers: Counter[int]) -> None:
    async def one() -> None:
        sender = ChunkSender(_HOST, port, statuses=answers)
        while True:
            await sender.run(1)

    await asyncio.gather(*(one() for _ in range(10)))


async def _unfinished(port: int, answers: Counter[int]) -> None:
    while True:
        bodies = UnfinishedBodies(port, 400, _BODY_BYTES)
        try:
            async with bodies:
                await asyncio.sleep(_STAYS_S)
        except ConnectionError:
            answers[0] += 1  # the server took no more of them
        finally:
            answers.update(bodies.answers.statuses)


async def _large_chats(port: int, answers: Counter[int]) -> None:
    while True:
        answers.update((await large_chats(port, 80, _BODY_BYTES)).statuses)


async def _silent(port: int, answers: Counter[int]) -> None:
    while True:
        async with silent_connections(_HOST, port, 512) as opened:
            try:
                await asyncio.sleep(_STAYS_S)
            finally:
                answers[0] += sum(reader.at_eof() for reader, _ in opened)


KINDS: dict[str, Callable[[int, Counter[int]], Awaitable[None]]] = {
    "10 senders of one-byte chunks": _chunks,
    "400 unfinished bodies": _unfinished,
    "80 large chats": _large_chats,
    "512 silent connections": _silent,
}


async def _until_told(kind: str, port: int) -> Counter[int]:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    answers: Counter[int] = Counter()
    heavy = asyncio.ensure_future(KINDS[kind](port, answers))
    print("begun", flush=True)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({heavy, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if heavy.done():
        await heavy  # it ends by an error only
    heavy.cancel()
    await asyncio.gather(heavy, return_exceptions=True)
    return answers


if __name__ == "__main__":
    raise_file_limit()
    print(json.dumps(asyncio.run(_until_told(sys.argv[1], int(sys.argv[2])))))

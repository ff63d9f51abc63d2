"""--serve COMMAND: a server that lives as long as the measurement.

The command is split as a shell would and run without one. It is ready when it lists its models and
neither /health nor /ready, where it has them, says 503; on
the way out it gets SIGTERM, and SIGKILL if it takes too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from loadtest.client.address import find_model, is_ready
from loadtest.client.connection import Address
from loadtest.errors import ScenarioError, ServerUnreachable

READY_S = 300.0
STOP_S = 40.0
_POLL_S = 0.2
_TAIL_LINES = 12


@contextlib.asynccontextmanager
async def started(
    command: str | None, address: Address, headers: dict[str, str]
) -> AsyncIterator[None]:
    """Does nothing without a command.

    Raises ServerUnreachable, with the last lines that the server said, when it ends or is not ready
    in time, and when the address is already taken by another server.
    """
    if command is None:
        yield
        return
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ScenarioError(f"--serve {command}: {error}") from None
    if not words:
        raise ScenarioError("--serve: give the command that starts the server")
    await _refuse_another(address, headers)
    with tempfile.TemporaryFile() as log:
        try:
            process = await asyncio.create_subprocess_exec(*words, stdout=log, stderr=log)
        except OSError as error:
            raise ScenarioError(f"--serve {words[0]}: {error.strerror or error}") from None
        try:
            await _ready(process, address, headers, log)
            yield
        finally:
            await _stop(process)


async def _refuse_another(address: Address, headers: dict[str, str]) -> None:
    try:
        await find_model(address, headers, timeout_s=2.0)
    except ServerUnreachable:
        return
    raise ServerUnreachable(f"--serve: another server answers at {address.authority} already")


async def _ready(
    process: asyncio.subprocess.Process,
    address: Address,
    headers: dict[str, str],
    log: IO[bytes],
) -> None:
    try:
        async with asyncio.timeout(READY_S):
            while process.returncode is None:
                with contextlib.suppress(ServerUnreachable):
                    await find_model(address, headers, timeout_s=5.0)
                    if await is_ready(address, headers, timeout_s=5.0):
                        return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise ServerUnreachable(
            f"--serve: not ready within {READY_S:.0f} s; it said last: {_tail(log)}"
        ) from None
    raise ServerUnreachable(
        f"--serve: ended with code {process.returncode}; it said last: {_tail(log)}"
    )


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]
    return " | ".join(line.strip() for line in lines if line.strip()) or "nothing"


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()

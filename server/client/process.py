"""Spawns the engine process, and makes sure that it never outlives this one.

The two speak over a socket pair: it has no name in the file system, no other process can connect to
it, and its end of stream is the notice of the other side's death. Two more ties hold the engine to
its parent: PR_SET_PDEATHSIG (the kernel kills the engine when the spawning thread ends, so only the
main thread may spawn), and a pipe whose other end only the parent holds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_SOCKET_BUFFER_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A running engine process: its socket, and the pipe that it watches."""

    popen: subprocess.Popen[bytes]
    connection: socket.socket
    death_pipe: FileIO  # no number: it might be another file's when it is closed once more

    @property
    def pid(self) -> int:
        return self.popen.pid

    def kill(self) -> None:
        """Ends the process at once and reaps it. Idempotent."""
        self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        """Kills the process and gives back what it held here."""
        self.kill()
        self.connection.close()
        self.death_pipe.close()


def spawn_engine(
    command: Sequence[str], gauges_fd: int, folder: Path | None = None
) -> EngineProcess:
    """Starts ``command SOCKET GAUGES DEATH_PIPE PARENT`` (file descriptors, then our pid) in
    ``folder``, by default the working directory.

    Raises:
        RuntimeError: called from a thread that may end before the process does.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("the engine process must be spawned from the main thread")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    read_end, write_end = os.pipe()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
    arguments = [str(fd) for fd in (theirs.fileno(), gauges_fd, read_end)] + [str(os.getpid())]
    try:
        popen = subprocess.Popen(
            [*command, *arguments],
            pass_fds=(theirs.fileno(), gauges_fd, read_end),
            stdin=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,  # Ctrl-C is the parent's: it drains
        )
    except OSError:
        ours.close()
        os.close(write_end)
        raise
    finally:
        theirs.close()
        os.close(read_end)
    return EngineProcess(popen, ours, FileIO(write_end, "w"))


def die_with_parent(parent: int, death_pipe: int) -> None:
    """Called first thing in the child. Ends the process when ``parent`` is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the call above
        os._exit(0)
    threading.Thread(target=_watch, args=(death_pipe,), name="death-pipe", daemon=True).start()


def _watch(death_pipe: int) -> None:
    while os.read(death_pipe, 1):
        pass
    os._exit(0)

"""The first code of the ``quire`` command: what must hold before anything else is imported.

A signal that asks to stop ends a start in silence, from here on, and descriptors 0 to 2 are open.
Only what the interpreter has loaded already is imported here.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

EXIT_STOPPED = 0  # a server that was told to stop before anything was open
EXIT_INTERRUPTED = 130  # any other command, as a shell says it


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the process's exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    open_standard_descriptors()
    _stop_in_silence(serves=given[:1] == ["serve"])
    from server.cli import main as run

    return run(arguments)


def open_standard_descriptors() -> None:
    """Puts /dev/null where standard input, output or error is closed.

    A socket or the gauges' memory would take that number otherwise, and the engine process, whose
    descriptors 0 to 2 are what their numbers say, would find something else in their place.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # it takes the lowest number that is free: this one
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or os.fdopen(0, "r", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _stop_in_silence(*, serves: bool) -> None:
    """Ends the process at once: an exception out of a handler would show as a traceback of some
    import, or be lost in one of the callbacks whose exceptions are ignored."""

    def stop(number: int, frame: object) -> None:
        os._exit(EXIT_STOPPED if serves else EXIT_INTERRUPTED)

    signal.signal(signal.SIGINT, stop)
    if serves:
        signal.signal(signal.SIGTERM, stop)

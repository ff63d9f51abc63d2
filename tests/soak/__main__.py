"""``make soak``: seconds of a good client beside heavy ones, then the clean soak.

Exits with 1 where the clean soak did not hold. Seconds decide nothing: they are a machine's.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.soak.beside import beside
from tests.soak.soak import soak


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of the clean soak; 0: none")
    parser.add_argument(
        "--heavy-seconds", type=float, default=20, help="beside each kind of clients; 0: none"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the clean soak's traffic")
    parser.add_argument("--logs", type=Path, help="a folder that keeps the servers' logs")
    parsed = parser.parse_args(arguments)
    started = time.monotonic()

    def say(line: str) -> None:
        print(line, flush=True)

    load = Path("/proc/loadavg").read_text().split()[0]
    say(f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.machine()}, load average {load}")
    with tempfile.TemporaryDirectory() as scratch:
        logs = parsed.logs or Path(scratch)
        logs.mkdir(parents=True, exist_ok=True)
        if parsed.heavy_seconds:
            beside(parsed.heavy_seconds, logs / "beside.log", say=say)
        if not parsed.seconds:
            return 0
        result = soak(parsed.seconds, logs / "soak.log", seed=parsed.seed, say=say)
    for line in result.lines():
        say(line)
    say(f"took {time.monotonic() - started:.0f} s")
    return 1 if result.faults() else 0


if __name__ == "__main__":
    sys.exit(main())

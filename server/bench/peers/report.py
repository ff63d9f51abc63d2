"""What the comparison found: told line by line, and kept as JSON and as a table.

A file is written anew with every row, so that a run which is stopped leaves what it had measured.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

import server
from kernels.bench.cpu.limits import CpuLimits
from kernels.cpu.native.library import levels_here
from kernels.cpu.native.program import runtime
from server.bench.engine import Spread, cpu_name
from server.bench.peers.row import Comparison
from server.bench.server import ROOT

RESULTS = Path(__file__).parents[1] / "results"
RECORDED = Path(__file__).with_name("recorded.json")
LEAST_OF_RECORDED = 0.85  # of what llama.cpp reached before on the same processor
_HEAD = "| row | unit | ours | llama.cpp | ratio | shares of the run's limits | goal | rounds |"


def processor() -> str:
    """What tells one kind of machine from another."""
    facts: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    kind = f"family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"
    return f"{cpu_name()}, {kind}, {torch.get_num_threads()} threads"


def recorded_here() -> Mapping[str, float]:
    """What llama.cpp reached before on such a processor, by row."""
    known = json.loads(RECORDED.read_text(encoding="utf-8"))
    found: dict[str, float] = known.get(processor(), {}).get("figures", {})
    return found


def machine_facts() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "level": f"{runtime().level.name} of {', '.join(levels_here())}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "quire": f"{server.__version__} {commit}".strip(),
        "python, torch": f"{platform.python_version()}, {torch.__version__}",
    }


@dataclass(slots=True)
class Report:
    """``folder`` gets the files of one run; None keeps none. ``llama`` is what the peer says of
    itself."""

    folder: Path | None
    llama: Mapping[str, str]
    limits: CpuLimits
    found: list[Comparison] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    void: list[str] = field(default_factory=list)
    recorded: Mapping[str, float] = field(default_factory=recorded_here)
    facts: Mapping[str, str] = field(default_factory=machine_facts)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def head(self) -> None:
        """What is measured on."""
        for name, fact in {**self.facts, **self.llama}.items():
            print(f"{name}: {fact}")
        if not self.recorded:
            print("llama.cpp has no recorded figures on this processor: the shares are what counts")

    def add(self, one: Comparison) -> None:
        self.found.append(one)
        recorded = self.recorded.get(one.name)
        if recorded and one.peer and one.peer.median < LEAST_OF_RECORDED * recorded:
            self.void.append(
                f"{one.name}: llama.cpp reached {one.peer.median:.1f}, where {recorded:.1f} are "
                "recorded on this processor: the run is void"
            )
            print(self.void[-1])
        print(_line(one), flush=True)
        self._keep()

    def add_missing(self, row: str, why: str) -> None:
        self.missing[row] = why
        print(f"{row}: no figure: {why}", flush=True)
        self._keep()

    def document(self) -> dict[str, object]:
        return {
            "benchmark": "peers",
            "machine": dict(self.facts),
            "llama.cpp": dict(self.llama),
            "limits": asdict(self.limits),
            "rows": [asdict(one) for one in self.found],
            "missing": self.missing,
            "void": self.void,
        }

    def table(self) -> str:
        facts = {**self.facts, **self.llama}.items()
        loops = "; ".join(f"{name} {rate / 1e9:.1f}" for name, rate in self.limits.loops.items())
        lines = [
            f"# Beside llama.cpp, {self.started:%Y-%m-%d %H:%M} UTC",
            "",
            *(f"- {name}: {fact}" for name, fact in facts),
            f"- reads {self.limits.read / 1e9:.1f} GB/s, the best of {loops}",
            f"- multiplies {self.limits.product / 1e9:.0f} GFLOP/s in float32",
            "",
            "Medians with [least..most] over the rounds; a ratio above 1 is ours.",
            "",
            _HEAD,
            "|---|---|---|---|---|---|---|---|",
            *(_table_line(one) for one in self.found),
            "",
            *(f"- {row}: no figure: {why}" for row, why in self.missing.items()),
            *(f"- {why}" for why in self.void),
        ]
        return "\n".join(lines).rstrip() + "\n"

    def _keep(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"peers-{self.started:%Y%m%d-%H%M%S}"
        for ending, text in (
            (".json", json.dumps(self.document(), indent=1) + "\n"),
            (".md", self.table()),
        ):
            draft = path.with_suffix(".partial")
            draft.write_text(text, encoding="utf-8")
            draft.replace(path.with_suffix(ending))


def _line(one: Comparison) -> str:
    parts = [f"{one.name}: {_spread(one.ours)} {one.unit}"]
    if one.peer is not None:
        parts.append(f"llama.cpp {_spread(one.peer)}")
    if one.ratio is not None:
        parts.append(f"ratio {_spread(one.ratio)}")
    parts += [f"{share:.0%} {of}" for of, share in one.shares.items()]
    if one.goals:
        parts.append(f"goal {one.goals}")
    return "; ".join([*parts, f"{one.rounds} rounds"])


def _table_line(one: Comparison) -> str:
    shares = ", ".join(f"{share:.0%} {of}" for of, share in one.shares.items())
    cells = (
        *(one.name, one.unit, _spread(one.ours)),
        "" if one.peer is None else _spread(one.peer),
        "" if one.ratio is None else _spread(one.ratio),
        *(shares, one.goals, str(one.rounds)),
    )
    return f"| {' | '.join(cells)} |"


def _spread(spread: Spread) -> str:
    digits = 1 if spread.median >= 10 else 2 if spread.median >= 1 else 3
    return spread.show(digits)

"""What the bench of a GPU's engine rows found, told and kept as it comes.

Every outcome is a line at once, and the JSON file is written anew with it, so that a run which is
stopped leaves what it had measured.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from server.bench.peers.transformers import PeerOutcome
from server.bench.serving import Batch

_COLUMNS = ("TPOT ms", "tokens/s", "of floor", "idle", "first ms", "prefill/s")


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One batch of one shape. ``goal`` is in milliseconds a step, or tokens a second."""

    shape: str
    batch: int
    prompt_tokens: int
    output_tokens: int
    goal: str = ""

    @property
    def name(self) -> str:
        return f"{self.shape} batch {self.batch} prompt {self.prompt_tokens}"

    @property
    def load(self) -> Batch:
        return Batch(self.batch, self.prompt_tokens, self.output_tokens)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a row came to. Times in seconds, rates in units a second."""

    row: EngineRow
    batch_invariant: bool
    tpot: float
    decode_tokens_per_second: float
    floor: float
    idle_share: float
    first_token: float
    prefill_tokens_per_second: float

    @property
    def bandwidth_share(self) -> float:
        return self.floor / self.tpot


@dataclass(frozen=True, slots=True)
class Load:
    """One model's way to the device."""

    shape: str
    parameters: int
    load_seconds: float
    load_bytes_per_second: float
    build_seconds: float  # weights, buffers, kernels compiled or read, graphs
    batch_invariant: bool


@dataclass(slots=True)
class Record:
    """Prints and keeps a run's findings one by one.

    Args:
        folder: gets one file of JSON a run; None keeps none.
        bandwidth: of a copy within the device, bytes a second.
    """

    folder: Path | None
    device: str
    bandwidth: float
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    loads: list[Load] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    peers: list[PeerOutcome] = field(default_factory=list)

    def start(self) -> None:
        """The head of the table, and a first file."""
        _tell(f"a copy within the device moves {self.bandwidth / 1e9:.0f} GB/s")
        _tell(f"{'row':<52}" + "".join(f"{name:>12}" for name in _COLUMNS) + "  goal")
        self._keep()

    def add_load(self, load: Load) -> None:
        self.loads.append(load)
        _tell(
            f"{load.shape}{_mode(load.batch_invariant)}: {load.parameters:,} parameters read at "
            f"{load.load_bytes_per_second / 1e9:.1f} GB/s in {load.load_seconds:.1f} s, ready in "
            f"{load.build_seconds:.1f} s"
        )
        self._keep()

    def add_outcome(self, one: Outcome) -> None:
        self.outcomes.append(one)
        figures = (
            f"{1e3 * one.tpot:.2f}",
            f"{one.decode_tokens_per_second:.0f}",
            f"{one.bandwidth_share:.0%}",
            f"{one.idle_share:.1%}",
            f"{1e3 * one.first_token:.1f}",
            f"{one.prefill_tokens_per_second:.0f}",
        )
        name = one.row.name + _mode(one.batch_invariant)
        _tell(f"{name:<52}" + "".join(f"{text:>12}" for text in figures) + f"  {one.row.goal}")
        self._keep()

    def add_peer(self, peer: PeerOutcome) -> None:
        self.peers.append(peer)
        if peer.tokens_per_second is None:
            found = f"no figure: {peer.reason}"
        else:
            found = f"{peer.tokens_per_second:.0f} tokens/s, prefill included"
        _tell(f"{peer.row:<52}  {peer.engine}: {found}")
        self._keep()

    def end(self) -> None:
        """The whole record as the last line."""
        _tell(json.dumps(self._report()))

    def _report(self) -> dict[str, object]:
        return {
            "date": self.started.isoformat(timespec="seconds"),
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "cuda": torch.version.cuda,
            },
            "device": self.device,
            "copy_bytes_per_second": self.bandwidth,
            "loads": [asdict(load) for load in self.loads],
            "rows": [
                asdict(one) | {"bandwidth_share": one.bandwidth_share} for one in self.outcomes
            ],
            "peers": [asdict(peer) for peer in self.peers],
        }

    def _keep(self) -> None:
        """Replaces the file whole, so that none that is cut short is ever seen."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"engine-{self.started:%Y%m%d-%H%M%S}.json"
        draft = path.with_suffix(".partial")
        draft.write_text(json.dumps(self._report(), indent=1) + "\n")
        draft.replace(path)


def _tell(line: str) -> None:
    print(line, flush=True)


def _mode(batch_invariant: bool) -> str:
    return " (batch-invariant)" if batch_invariant else ""

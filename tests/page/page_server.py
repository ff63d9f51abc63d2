"""The real application on a real socket, over fakes whose figures a test sets while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from server.api.state import HttpLimits
from server.memory.accounting.reading import KV_PARTS
from server.memory.kinds import MemoryKind
from tests.api.api_fakes import FakeEngine, make_state
from tests.api.served_app import served

MIB = 1024 * 1024
TTFT = "quire_time_to_first_token_seconds"
ITL = "quire_inter_token_latency_seconds"


def device(name: str = "cpu", **kinds: int) -> dict[str, Any]:
    """A device of /memory whose books balance; every kind has some bytes unless it is given."""
    held = {str(kind): (index + 1) * MIB for index, kind in enumerate(MemoryKind)} | kinds
    lines: dict[str, dict[str, Any]] = {
        kind: {
            "bytes": count,
            "peak_bytes": count + 3 * MIB,
            "planned_bytes": count + 2048 if kind in ("weights", "kv_cache") else None,
            "formula": f"how {kind} comes about",
            "estimated": kind == "runtime",
            "parts": [],
        }
        for kind, count in held.items()
    }
    parts = [held["kv_cache"] // 8 * share for share in (1, 2, 1)]
    parts.append(held["kv_cache"] - sum(parts))
    lines["kv_cache"]["parts"] = [
        {"part": part, "bytes": count} for part, count in zip(KV_PARTS, parts, strict=True)
    ]
    lines["weights"]["parts"] = [
        {"part": "embedding", "format": "bf16", "bytes": 4096, "planned_bytes": 4096}
    ]
    return {"device": name, "ready": True, "total_bytes": sum(held.values()), "kinds": lines}


def histogram(name: str, observed: Iterable[float], bounds: Iterable[float]) -> str:
    values = list(observed)
    counts = [(f"{le:g}", sum(value <= le for value in values)) for le in bounds]
    counts.append(("+Inf", len(values)))
    return "".join(f'{name}_bucket{{le="{le}"}} {count}\n' for le, count in counts)


@dataclass
class Figures:
    """What the server says of itself; a test changes it between polls."""

    devices: list[dict[str, Any]] = field(default_factory=lambda: [device()])
    notes: list[str] = field(default_factory=list)
    values: dict[str, float] = field(
        default_factory=lambda: {
            "quire_engine_up": 1,
            "quire_requests_running": 3,
            "quire_requests_waiting": 2,
            'quire_kv_tokens{state="capacity"}': 4096,
            'quire_kv_tokens{state="reserved"}': 512,
            'quire_kv_tokens{state="filled"}': 400,
            'quire_kv_blocks{state="live"}': 32,
            'quire_kv_blocks{state="cached"}': 64,
            'quire_kv_blocks{state="free"}': 160,
            'quire_engine_step_tokens_total{phase="prompt"}': 1000,
            'quire_engine_step_tokens_total{phase="decode"}': 5000,
        }
    )
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    bounds: tuple[float, ...] = (0.1, 0.2, 0.4)
    polls: int = 0

    def memory(self) -> Mapping[str, Any]:
        self.polls += 1
        return {"devices": self.devices, "host": {}, "notes": self.notes}

    def metrics(self) -> bytes:
        text = "".join(f"{name} {value}\n" for name, value in self.values.items())
        latencies = histogram(TTFT, self.ttft, self.bounds) + histogram(ITL, self.itl, self.bounds)
        return f"# HELP of no interest\n{text}{latencies}".encode()


class PageServer:
    """Serves beside a browser that is driven; a context manager. Can be started again on its port,
    after a stop."""

    def __init__(self, engine: FakeEngine | None = None, **changes: Any) -> None:
        self.figures = Figures()
        self.engine = engine or FakeEngine()
        self.port = 0
        self._changes = changes
        self._serving = ExitStack()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        state = make_state(
            self.engine,
            limits=HttpLimits(stream_keep_alive_s=0.005),  # so that the page meets comments
            memory=self.figures.memory,
            render_metrics=self.figures.metrics,
            version={"version": "1.2.3", "dtype": "bf16", "device": "cpu"},
            **self._changes,
        )
        self.port = self._serving.enter_context(served(state, self.port))

    def stop(self) -> None:
        self._serving.close()

    def __enter__(self) -> PageServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

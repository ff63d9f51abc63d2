"""The benchmark's results: a table for people, JSON for programs."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
import triton

from kernels.bench.row import Limits, Outcome
from kernels.bench.suite import Skipped
from kernels.dispatch import gpu_index

RESULTS = Path(__file__).with_name("results")
HEADER = ("row", "what", "who", "us", "10..90 %", "GB/s", "TFLOP/s", "limit", "goal", "reached")


def environment(device: torch.device) -> dict[str, str | int]:
    """Date, device and versions: what a figure means nothing without."""
    facts: dict[str, str | int] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": device.type,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }
    index = gpu_index(device)
    if index is not None:
        properties = torch.cuda.get_device_properties(index)
        facts |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "cuda": str(torch.version.cuda),
        }
    return facts


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each contender; a * behind the time says that inputs lay in the L2 cache."""
    lines = [HEADER, *(_line(outcome) for outcome in outcomes)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _line(outcome: Outcome) -> tuple[str, ...]:
    reached = {None: "", True: "yes", False: "no"}[outcome.reached]
    return (
        str(outcome.row),
        outcome.name,
        outcome.contender,
        f"{outcome.microseconds:.1f}{'' if outcome.cold else '*'}",
        f"{outcome.low:.1f}..{outcome.high:.1f}",
        f"{outcome.gigabytes_per_second:.0f}",
        f"{outcome.teraflops_per_second:.1f}",
        f"{outcome.fraction:.0%} of {outcome.limit}",
        outcome.goal if outcome.reached is not None else "",
        reached,
    )


def costs(outcomes: Sequence[Outcome]) -> list[str]:
    """What batch invariance costs, row by row."""
    own = {(outcome.name, outcome.contender): outcome.microseconds for outcome in outcomes}
    return [
        f"batch-invariant {name}: {invariant / own[name, 'quire']:.2f} times the time"
        for (name, contender), invariant in own.items()
        if contender == "quire batch-invariant" and (name, "quire") in own
    ]


def document(
    facts: dict[str, str | int],
    limits: Limits,
    outcomes: Sequence[Outcome],
    skipped: Sequence[Skipped],
) -> dict[str, object]:
    return {
        "benchmark": "kernels",
        "environment": facts,
        "limits": {
            "copy_gigabytes_per_second": limits.copy / 1e9,
            "product_teraflops_per_second": limits.product / 1e12,
        },
        "rows": [asdict(outcome) for outcome in outcomes],
        "skipped": [asdict(reason) for reason in skipped],
    }


def save(content: dict[str, object], facts: dict[str, str | int], folder: Path) -> Path:
    """A file of its own for each run, named by device and time."""
    folder.mkdir(parents=True, exist_ok=True)
    device = str(facts["device"]).lower().replace(" ", "-")
    stamp = str(facts["date"]).replace(":", "")
    path = folder / f"{device}-{stamp}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path

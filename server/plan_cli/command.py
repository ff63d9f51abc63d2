"""``quire plan``: its arguments, its output, its exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from server.config.values import read_integer
from server.errors import StartupError
from server.plan_cli.answer import answer
from server.plan_cli.bars import decimal, table
from server.plan_cli.devices import DEVICES, this_machine
from server.plan_cli.make import PlanOptions, make_plan
from server.plan_cli.options import SHARED
from server.plan_cli.text import WIDTH, plan_text
from server.units import format_size
from weights.inventory import num_active_parameters, num_parameters
from weights.presets import read_presets

EXIT_FITS = 0
EXIT_DOES_NOT_FIT = 1  # 2, bad input, is server.cli's for every command
_MOST_RANKS = 1024


def run(parsed: argparse.Namespace) -> int:
    """Prints the plan. Raises StartupError for what cannot be planned."""
    if parsed.list:
        if parsed.model is not None or parsed.shape is not None:
            raise StartupError("--list plans nothing: leave it out, or the model")
        _print(json.dumps(listed(), indent=2) if parsed.json else listing())
        return EXIT_FITS
    plan = make_plan(plan_options(parsed))
    facts = answer(plan, explain=parsed.explain)
    _print(json.dumps(facts, indent=2) if parsed.json else plan_text(plan, facts))
    return EXIT_FITS if plan.fits else EXIT_DOES_NOT_FIT


def _print(text: str) -> None:
    """A reader that has seen enough (head, a pager) changes nothing about the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()  # what it still holds would fail again at the exit


def listed() -> dict[str, list[dict[str, Any]]]:
    """What ``listing`` says, as plain data. Bytes, bytes a second, FLOP/s; null where unknown."""
    presets = read_presets().values()
    return {
        "presets": [
            {
                "preset": p.name,
                "parameters": num_parameters(p.spec),
                "active_parameters": num_active_parameters(p.spec),
                "source": p.source,
            }
            for p in presets
        ],
        "devices": [asdict(device) for device in DEVICES],
    }


def listing() -> str:
    """Every preset and every device, one a line."""
    presets = [("preset", "parameters", "active", "source")]
    for preset in read_presets().values():
        total, active = num_parameters(preset.spec), num_active_parameters(preset.spec)
        presets.append((preset.name, decimal(total), decimal(active), preset.source))
    devices = [("device", "memory", "bytes/s", "FLOP/s 16-bit", "FLOP/s fp8", "source")]
    devices += [
        (
            device.name,
            format_size(device.memory_bytes),
            decimal(device.bandwidth or 0),
            decimal(device.flops_16bit or 0),
            decimal(device.flops_fp8) if device.flops_fp8 else "-",
            device.source,
        )
        for device in DEVICES
    ]
    *names, last = this_machine()
    also = f"also: --device {', '.join(names)} or {last} for this machine, or a size such as 24GiB"
    return "\n".join((*_flush(presets), "", *_flush(devices), "", also))


def _flush(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table whose last column is text, cut to the width."""
    lines = table([row[:-1] for row in rows])
    return [
        f"{line}  {textwrap.shorten(row[-1], WIDTH - len(line) - 2, placeholder=' ...')}"
        for line, row in zip(lines, rows, strict=True)
    ]


def plan_options(parsed: argparse.Namespace) -> PlanOptions:
    given = vars(parsed)
    try:
        ranks = read_integer(parsed.tensor_parallel_size, 1, _MOST_RANKS)
    except ValueError as error:
        raise StartupError(f"--tensor-parallel-size: {error}") from None
    return PlanOptions(
        model=parsed.model,
        shape=parsed.shape,
        device=parsed.target,
        kv_cache_dtype=parsed.kv_cache_dtype,
        ranks=ranks,
        flags={option.name: given[option.field] for option in SHARED if option.field in given},
        config_file=parsed.config,
    )

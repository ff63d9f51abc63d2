"""Builds an engine from settings: runner, core, accountant. For its own process, or in this one."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from server.engine.core import EngineCore
from server.errors import StartupError
from server.execution.build import build_runner
from server.execution.cuda_graphs import GraphMode
from server.execution.out_of_memory import is_out_of_memory, reason_of
from server.ipc.engine_info import EngineInfo, EngineSettings
from server.memory.accounting.accountant import Accountant
from server.worker.memory_accounting import accounting_sources, open_device
from server.worker.out_of_memory import OutOfMemoryLog, loading_message
from weights.errors import CheckpointError
from weights.loading.progress import ProgressBar, RecentRate, whole_text

Progress = Callable[[str], None]

_PROGRESS_S = 2.0  # between two lines about loading


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    core: EngineCore
    accountant: Accountant
    facts: EngineInfo


def build_engine(settings: EngineSettings, progress: Progress) -> BuiltEngine:
    """Loads the model and makes everything that ``settings`` say.

    Raises:
        StartupError: the folder is refused, or the model does not fit; names what is at fault.
    """
    started = time.monotonic()
    torch.set_num_threads(settings.num_threads)
    display = partial(loading_display, settings.log_format, progress, sys.stderr)
    try:
        opened = open_device(settings)
        built = build_runner(
            Path(settings.model_dir),
            settings.config,
            progress=display(),
            filling=lambda: display("making the cache resident"),
            graphs=GraphMode(settings.cuda_graphs),
            opened=opened,
        )
        # First asked while a core runs.
        accountant = Accountant(accounting_sources(opened, built, lambda: core.gauges()))
        core = EngineCore(
            built.runner,
            built.kv,
            settings.config.scheduler,
            prefix_caching=settings.config.cache.prefix_caching,
            strict=settings.debug_check_invariants,
            on_shortage=OutOfMemoryLog(built.layout, accountant.read),
        )
    except CheckpointError as error:
        raise StartupError(f"{settings.model_dir}: {error}") from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise StartupError(loading_message(reason_of(error), settings)) from error
    gc.collect()
    gc.freeze()  # what was built lives as long as the engine: no need to look at it again
    opened.memory.settle()
    facts = EngineInfo(
        weights={str(name): nbytes for name, nbytes in built.held.weights().items()},
        weights_format=settings.config.model.format,
        load_seconds=built.report.seconds,
        ready_seconds=time.monotonic() - started,
        torch_version=str(torch.__version__),
        num_threads=torch.get_num_threads(),
        cpu_capability=opened.device.description,
        skipped=tuple(f"{item.name}: {item.reason}" for item in built.report.skipped),
        kernel_cache=opened.device.kernel_cache,
        largest_step_seconds=built.runner.largest_step_seconds,
    )
    return BuiltEngine(core, accountant, facts)


def loading_display(
    log_format: str, progress: Progress, stream: TextIO, label: str = "loading"
) -> Callable[[int, int], None]:
    """Takes bytes done and bytes to do: a bar on a terminal with the text log, else lines."""
    if log_format == "text" and stream.isatty():
        return ProgressBar(stream, label=label)
    return _Loading(progress, label)


class _Loading:
    """Tells about a long load every few seconds."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._label = label
        self._started = time.monotonic()
        self._next = self._started + _PROGRESS_S
        self._rate = RecentRate(self._started)

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._rate.add(now, done)
        if now < self._next:
            return
        self._next = now + _PROGRESS_S
        last = done >= total
        text = whole_text(total, now - self._started) if last else self._rate.text(now, done, total)
        self._progress(f"{self._label}: {text.strip()}")

"""Memory that runs out on purpose, and the engine's runs under it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from server.engine.core import EngineCore
from server.engine.engine_config import EngineConfig
from server.engine.kv_spec import KVCacheSpec
from server.engine.request import EngineRequest, FinishReason
from server.engine.step import OutOfMemoryEvent
from server.engine.step_plan import Executor
from server.execution.live_bytes import LiveBytes
from tests.equivalence.harness import Choice, Run

WORDS = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: injected"


Place = tuple[str, ...]  # an operation, and the lines that led to it, innermost first
_OWN = (f"{os.sep}server{os.sep}", f"{os.sep}kernels{os.sep}")


def _place(operation: str) -> Place:
    lines = [operation]
    frame = sys._getframe(2)
    while frame.f_back is not None:
        frame = frame.f_back
        name = frame.f_code.co_filename
        if any(folder in name for folder in _OWN):
            lines.append(f"{name}:{frame.f_lineno}")
    return tuple(lines)


class FailingOnce(TorchDispatchMode):
    """The ``fail_at``-th operation that makes memory of its own raises as torch's allocator does;
    0 never. ``places`` says of each in turn where in the program it was called, and what."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self, fail_at: int) -> None:
        super().__init__()
        self.fail_at = fail_at
        self.places: list[Place] = []

    @property
    def count(self) -> int:
        return len(self.places)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = _storages((args, kwargs))
        if _storages(out) - given:
            self.places.append(_place(str(func)))
            if self.count == self.fail_at:
                raise RuntimeError(WORDS)
        return out


class Bounded(LiveBytes):
    """An operation that would leave more than ``most`` bytes of intermediates alive raises."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self.alive_bytes() > self.most:
            raise RuntimeError(WORDS)
        return out


def _storages(tree: Any) -> set[int]:
    leaves = tree_leaves(tree)
    return {leaf.untyped_storage()._cdata for leaf in leaves if hasattr(leaf, "untyped_storage")}


@dataclass
class ShortRun:
    """What came of requests while memory ran out, and every shortage that was told of."""

    run: Run = field(default_factory=Run)
    shortages: list[OutOfMemoryEvent] = field(default_factory=list)
    errors: dict[str, set[str | None]] = field(default_factory=dict)  # codes by request

    @property
    def ended(self) -> list[str]:
        return [name for shortage in self.shortages for name in shortage.ended]


def run_short(
    executor: Executor,
    kv: KVCacheSpec,
    config: EngineConfig,
    requests: Sequence[EngineRequest],
    memory: TorchDispatchMode,
    *,
    budget: int = 48,
    prefix_caching: bool = True,
    most_steps: int = 400,
) -> ShortRun:
    """Runs the requests to their ends, the invariants checked after every change. The engine is
    empty afterwards, whatever happened."""
    found = ShortRun()
    sizes = replace(
        config.scheduler,
        max_num_batched_tokens=budget,
        max_logit_rows=min(budget, config.scheduler.logit_rows),
    )
    core = EngineCore(
        executor,
        kv,
        sizes,
        prefix_caching=prefix_caching,
        strict=True,
        on_shortage=found.shortages.append,
    )
    core.submit(list(requests))
    with memory, quiet():
        for _ in range(most_steps):
            if not core.has_work:
                break
            frame = core.step()
            assert frame is not None, "the engine stalled"
            for output in frame.choices:
                if output.finish_reason is FinishReason.ERROR:
                    found.errors.setdefault(output.request_id, set()).add(output.error_code)
            found.run.take(frame)
    assert not core.has_work, f"the engine comes to an end: {found.shortages[-3:]}"
    core.check()
    gauges = core.gauges()
    assert (gauges.blocks_active, gauges.blocks_reserved) == (0, 0)
    assert (gauges.requests_running, gauges.requests_waiting) == (0, 0)
    return found


def without(run: Run, names: Sequence[str]) -> Run:
    """The run as if these requests had not been there."""

    def kept(key: tuple[str, int]) -> bool:
        return key[0] not in names

    choices: dict[tuple[str, int], Choice] = {
        key: choice for key, choice in run.choices.items() if kept(key)
    }
    prompts = {name: nats for name, nats in run.prompts.items() if name not in names}
    return Run(choices=choices, prompts=prompts)


@contextmanager
def quiet() -> Iterator[None]:
    logger = logging.getLogger("server.engine.core")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)

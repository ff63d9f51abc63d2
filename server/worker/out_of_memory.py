"""What is said when memory runs out: at the start, and while serving."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from server.engine.step import OutOfMemoryEvent
from server.ipc.engine_info import EngineSettings
from server.memory.accounting.reading import MemoryReading
from server.memory.layout import Layout, build_layout
from server.memory.planner.plan import planned_bytes
from server.memory.report.tree import memory_table
from server.units import format_size
from weights.checkpoint.folder import open_checkpoint
from weights.families import resolve

log = logging.getLogger("quire.memory")


class OutOfMemoryLog:
    """Logs every step that found no memory, with the memory accounting of that moment: ``read``
    is the accountant's."""

    def __init__(self, layout: Layout, read: Callable[[], MemoryReading]) -> None:
        self._planned = planned_bytes(layout)
        self._read = read

    def __call__(self, shortage: OutOfMemoryEvent) -> None:
        log.error(
            "out of memory in step %d (%d tokens, %d rows): %s; %s",
            shortage.step_id,
            shortage.num_tokens,
            shortage.num_rows,
            shortage.reason,
            _decision(shortage),
        )
        try:
            reading = self._read()
        except (MemoryError, OSError) as error:
            log.error("the memory accounting cannot be read: %s", error)
            return
        log.error("memory when the step failed:\n%s", memory_table(reading, self._planned))


def loading_message(reason: str, settings: EngineSettings) -> str:
    """Why a start ended, and what would take less. The folder's headers were read before."""
    document = open_checkpoint(Path(settings.model_dir)).config
    layout = build_layout(resolve(document).spec(document), settings.config)
    plan = ", ".join(
        f"{kind} {format_size(nbytes)}" for kind, nbytes in planned_bytes(layout).items() if nbytes
    )
    return (
        f"out of memory while loading: {reason}. Planned are {plan}. A smaller --kv-cache-memory, "
        "--max-num-seqs or --max-num-batched-tokens, or a 16-bit --dtype, takes less."
    )


def _decision(shortage: OutOfMemoryEvent) -> str:
    if not shortage.asked:
        return "needed by requests that have ended"
    requests = ", ".join(shortage.asked)
    if shortage.ended:
        return f"needed by {requests}; ending {', '.join(shortage.ended)} with an error"
    return f"needed by {requests}; retrying them one at a time"

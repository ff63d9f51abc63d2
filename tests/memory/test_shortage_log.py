"""The log of a step that ran out of memory: what failed, whose it was, what happens next."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from server.engine.request import EngineRequest, SamplingParams
from server.engine.step import OutOfMemoryEvent
from server.engine.step_plan import StepOutOfMemory, StepPlan
from server.execution.model_runner import ModelRunner
from server.ipc.engine_info import EngineSettings
from server.memory.accounting.reading import MemoryReading
from server.memory.layout import build_layout
from server.worker.build import build_engine
from server.worker.out_of_memory import OutOfMemoryLog
from tests.engine_configs import engine_config
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_llama

CONFIG = engine_config(
    block_size=16,
    num_blocks=4,
    max_num_seqs=2,
    max_num_batched_tokens=32,
    max_model_len=64,
    max_logit_rows=32,
    max_logprobs=5,
)


def unread() -> MemoryReading:
    raise OSError("no /proc here")


@pytest.mark.parametrize(
    ("asked", "ended", "told"),
    [
        (("r1", "r2"), (), "needed by r1, r2; retrying them one at a time"),
        (("r1", "r2"), ("r2",), "needed by r1, r2; ending r2 with an error"),
        ((), (), "needed by requests that have ended"),
    ],
)
def test_the_line_says_what_failed_whose_it_was_and_what_comes_next(
    asked: tuple[str, ...], ended: tuple[str, ...], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = OutOfMemoryLog(build_layout(tiny_llama(), CONFIG), unread)
    with caplog.at_level(logging.ERROR, logger="quire.memory"):
        log(OutOfMemoryEvent(12, 512, 3, asked, ended, "no 4.0 MiB"))
    assert caplog.messages == [
        f"out of memory in step 12 (512 tokens, 3 rows): no 4.0 MiB; {told}",
        "the memory accounting cannot be read: no /proc here",
    ]


def test_an_engine_logs_where_its_memory_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tiny_llama(num_layers=1), tmp_path, seed=1)
    core = build_engine(EngineSettings(str(tmp_path), CONFIG, num_threads=1), str).core

    def no_memory(runner: ModelRunner, plan: StepPlan) -> None:
        raise StepOutOfMemory(tuple(row.row for row in plan.rows), "no 4.0 MiB")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, logger="quire.memory"):
        patch.setattr(ModelRunner, "forward", no_memory)
        core.submit([EngineRequest("r1", (1, 2, 3), SamplingParams(seed=0))])
        core.step()
    line, table = caplog.messages
    assert line.endswith("ending r1 with an error")
    assert table.startswith("memory when the step failed:\n")
    assert "kv_cache" in table and "unaccounted" in table

"""The log of a step that ran out of memory: what failed, whose it was, what happens next."""

from __future__ import annotations

import logging

import pytest

from server.engine.step import OutOfMemoryEvent
from server.memory.layout import build_layout
from server.worker.out_of_memory import OutOfMemoryLog
from tests.engine_configs import engine_config
from weights.synthetic.tiny_specs import tiny_llama


def logged(asked: tuple[str, ...], ended: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> str:
    config = engine_config(
        block_size=16,
        num_blocks=4,
        max_num_seqs=2,
        max_num_batched_tokens=32,
        max_model_len=64,
        max_logit_rows=32,
        max_logprobs=5,
    )
    layout = build_layout(tiny_llama(), config)
    with caplog.at_level(logging.ERROR, logger="quire.memory"):
        OutOfMemoryLog(layout)(OutOfMemoryEvent(12, 512, 3, asked, ended, "no 4.0 MiB"))
    (line,) = caplog.messages
    return line


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
    assert logged(asked, ended, caplog) == (
        f"out of memory in step 12 (512 tokens, 3 rows): no 4.0 MiB; {told}"
    )

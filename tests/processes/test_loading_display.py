"""Who watches a load sees a bar; a log gets lines, and only where it takes long."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
import torch

from server.execution.buffers import allocate
from server.memory.layout import build_layout
from server.worker.build import loading_display
from tests.engine_configs import engine_config
from weights.synthetic.tiny_specs import tiny_llama

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_the_log_nothing() -> None:
    stream, lines = Terminal(), list[str]()
    loading_display("text", lines.append, stream)(4 * MIB, 4 * MIB)
    assert "100 % of 4.0 MiB" in stream.getvalue()
    assert lines == []


@pytest.mark.parametrize(("log_format", "stream"), [("json", Terminal()), ("text", io.StringIO())])
def test_a_log_gets_a_line_every_two_seconds(
    log_format: str, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, lines = [100.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    show = loading_display(log_format, lines.append, stream)
    for step in range(1, 5):
        now[0] += 1.0
        show(step * MIB, 4 * MIB)
    assert lines == [
        "loading: 50 % of 4.0 MiB at 1.0 MiB/s, 2.0 s left",
        "loading: 100 % of 4.0 MiB in 4.0 s, 1.0 MiB/s",
    ]
    assert stream.getvalue() == ""


def test_memory_that_is_made_resident_is_told_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a machine's memory may take minutes, and nothing else is heard meanwhile."""
    monkeypatch.setattr("server.execution.buffers._PIECE_BYTES", 4096)
    layout = build_layout(
        tiny_llama(),
        engine_config(num_blocks=4, max_num_seqs=2, max_num_batched_tokens=32, max_model_len=64),
    )
    heard = list[tuple[int, int]]()
    made = allocate(layout, torch.device("cpu"), lambda done, total: heard.append((done, total)))
    total = sum(tensor.nbytes for tensor in made.values())
    steps = [done for done, _ in heard]
    assert {all_of_it for _, all_of_it in heard} == {total}
    assert steps == sorted(steps)
    assert steps[-1] == total
    assert max(after - before for before, after in pairwise([0, *steps])) <= 4096
    assert not any(tensor.any() for tensor in made.values())

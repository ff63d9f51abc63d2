"""The bench of the books runs, and its last line holds every figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.bench import accounting as bench_books
from weights.synthetic.checkpoint import tiny_llama, write_checkpoint

pytestmark = pytest.mark.usefixtures("keeps_threads")


OPTIONS = "--rounds 2 --batch 3 --prompt-tokens 8 --output-tokens 6 --scrapes 2"


def test_the_last_line_holds_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tiny_llama(num_layers=1), tmp_path, seed=0)
    monkeypatch.setattr(bench_books, "measure_scrapes", lambda options: {})
    assert bench_books.main([str(tmp_path), *OPTIONS.split()]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    throughput = report["throughput"]
    for way in ("with_books", "without"):
        assert 0 < throughput[way]["min"] <= throughput[way]["median"] <= throughput[way]["max"]
    assert 0 < throughput["processor_share"]["median"] < 1
    assert throughput["cost"]["max"] < 1


@pytest.mark.slow
def test_a_real_server_is_scraped_idle_and_loaded(tmp_path: Path) -> None:
    given = bench_books.Options(str(bench_books.DEMO), 1, 1, 8, 16, scrapes=2)
    found = bench_books.measure_scrapes(given)
    assert set(found) == {
        f"{path} {load}" for path in ("/metrics", "/memory") for load in ("idle", "full load")
    }
    assert all(0 < spread.min <= spread.max for spread in found.values())


def test_senseless_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_books.main(["--rounds", "0"])
    assert "at least 1" in capsys.readouterr().err

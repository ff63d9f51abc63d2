"""The bench over HTTP drives a real server with the load test, and keeps what it saw."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from loadtest.workload.scenario import read_scenario
from server.bench import http as bench_http
from server.bench.server import free_port, get, started
from weights.synthetic.checkpoint import tiny_llama, write_checkpoint, write_tokenizer


def arguments(model: Path, vocab_size: int) -> list[str]:
    spec = tiny_llama(num_layers=1, vocab_size=vocab_size)
    write_checkpoint(spec, model, seed=0)
    write_tokenizer(model, spec.vocab_size)
    options = "--device cpu --concurrencies 2,3 --prompt-tokens 8 --output-tokens 6"
    return [str(model), *options.split(), "--seconds", "2", "--rounds", "1"]


@pytest.mark.slow
def test_a_row_holds_both_rates_and_the_books_under_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    given = [*arguments(tmp_path / "model", 8192), "--results", str(results)]
    assert bench_http.main(given) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    (kept,) = results.iterdir()
    assert json.loads(kept.read_text(encoding="utf-8")) == report
    assert [row["concurrency"] for row in report["rows"]] == [2, 3]
    for row in report["rows"]:
        (run,) = row["runs"]
        offline, http = row["offline"]["median"], row["http"]["median"]
        assert row["kept"]["median"] == pytest.approx(http / offline)
        assert http == run["output_tokens_per_second"] > 0
        assert 0 < run["tpot"]["50.0"] < run["ttft"]["99.0"] < 60
        assert run["memory"]["devices"]
        assert "quire_requests_running" in run["metrics"]


@pytest.mark.slow
def test_a_server_that_refuses_the_load_is_no_figure_of_zero(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no complete answer: .*must be a token id from 0 to 511"):
        bench_http.main(arguments(tmp_path / "model", 512))


def test_a_server_keeps_bytecode_where_the_caller_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    code = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(sys.dont_write_bytecode).encode())
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
    port = free_port()
    with started((sys.executable, "-c", code, str(port)), port) as process:
        assert get(port, "/ready") == (200, b"False")
        assert process.poll() is None


def test_the_scenario_is_what_was_asked_for() -> None:
    options = bench_http.Options(Path("model"), None, "cpu", (4,), 96, 32, 5.0, 1, None)
    scenario = read_scenario(tomllib.loads(bench_http._scenario(4, options)), "bench")
    (kind,) = scenario.kinds
    assert (kind.prompt.low, kind.prompt.high, kind.output.low, kind.output.high) == (
        96,
        96,
        32,
        32,
    )
    assert scenario.seconds == 5.0
    assert scenario.fields == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--concurrencies 1,x", "give numbers, as in 1,8,32"),
        ("--concurrencies 0", "start at 1"),
        ("--output-tokens 1", "output tokens at 2"),
        ("--seconds 0", "at least 1"),
    ],
)
def test_senseless_options_are_refused(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench_http.main(arguments.split())
    assert message in capsys.readouterr().err

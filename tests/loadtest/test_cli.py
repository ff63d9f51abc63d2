"""The commands as a person gives them: what is printed, what is kept, which exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loadtest.cli import SCENARIOS, find_scenario, main
from tests.loadtest.loads import get

SCENARIO = """
name = "quick"
[arrivals]
kind = "constant"
rate = 50.0
[run]
requests = 10
[[requests]]
prompt_tokens = 4
output_tokens = 3
[fields.script]
first = 0.01
gap = 0.002
"""


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text(SCENARIO)
    return path


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def test_run_prints_a_table_and_keeps_a_result_and_a_page(
    fake_port: int, quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, page = tmp_path / "a.json", tmp_path / "a.html"
    command = ["run", str(quick), "--base-url", url(fake_port), "--out", str(kept)]
    assert main([*command, "--html", str(page)]) == 0
    shown = capsys.readouterr()
    for word in ("TTFT", "ITL", "TPOT", "E2E", "client delay", "requests/s", "ok 10", "quick"):
        assert word in shown.out
    assert "between two events with text" in shown.out  # definitions stand below
    result = json.loads(kept.read_text())
    assert len(result["requests"]) == 10 and result["outcomes"] == {"ok": 10}
    html = page.read_text()
    assert html.startswith("<!doctype html>") and "<svg" in html
    assert "http://" not in html.replace("http://127.0.0.1", "") and "<script" not in html


def test_a_missed_objective_is_exit_code_1(
    fake_port: int, quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.write_text(SCENARIO + "[objectives]\nttft = 0.0001\n")
    assert main(["run", str(quick), "--base-url", url(fake_port), "--quiet"]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_sweep_shows_every_load(
    fake_port: int, quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = ["--concurrencies", "1,4", "--requests", "8"]
    assert main(["sweep", str(quick), *loads, "--base-url", url(fake_port), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "closed loop of 1" in out and "closed loop of 4" in out


def test_search_ends_with_a_rate(
    fake_port: int, quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.write_text(SCENARIO + "[objectives]\ne2e = 30.0\n")
    search = ["--search", "20:40", "--base-url", url(fake_port), "--quiet"]
    assert main(["sweep", str(quick), *search]) == 0
    assert "hold up to 40 requests/s" in capsys.readouterr().out


def test_compare_tells_a_slower_side(
    fake_port: int, quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, first in (("a", 0.01), ("b", 0.01), ("c", 0.06)):
        quick.write_text(SCENARIO.replace("first = 0.01", f"first = {first}"))
        files.append(str(tmp_path / f"{name}.json"))
        kept = ["--requests", "40", "--rate", "100", "--out", files[-1]]
        assert main(["run", str(quick), "--base-url", url(fake_port), "--quiet", *kept]) == 0
    capsys.readouterr()
    assert main(["compare", files[0], files[2]]) == 1
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("TTFT p50"))
    assert line.endswith("slower")
    main(["compare", files[2], f"{files[0]},{files[1]}"])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("TTFT p50"))
    assert line.endswith("faster")


def test_replay_keeps_a_trace_s_lengths(
    fake_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, kept = tmp_path / "trace.csv", tmp_path / "r.json"
    trace.write_text("time,input,output,group,prefix\n5,7,3,a,4\n5.1,9,2,a,4\n5.2,4,5,,\n")
    command = ["replay", str(trace), "--base-url", url(fake_port), "--out", str(kept), "--quiet"]
    assert main(command) == 0
    requests = sorted(json.loads(kept.read_text())["requests"], key=lambda r: r["index"])
    assert [len(request["token_times"]) for request in requests] == [3, 2, 5]
    assert [round(request["intended"], 6) for request in requests] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "nonesuch"], 2, "no scenario 'nonesuch'; there are: "),
        (["run", "/no/such.toml"], 2, "/no/such.toml: No such file"),
        (["run", "demo", "--base-url", "ftp://x"], 2, "give http://HOST:PORT"),
        (["run", "demo", "--base-url", "http://u:p@x"], 2, "--api-key"),
        (["run", "demo", "--base-url", "http://127.0.0.1:1"], 3, "no server at 127.0.0.1:1"),
        (["run", "demo", "--seconds", "-1"], 2, "--seconds -1: must be more than 0"),
        (["run", "demo", "--rate", "1", "--concurrency", "1"], 2, "exclude each other"),
        (["run", "demo", "--warm-up", "-1"], 2, "--warm-up -1: must be 0 or more"),
        (["run", "demo", "--out", "/no/a.json"], 2, "--out /no/a.json: no file can be written"),
        (["run", "demo", "--html", "/"], 2, "--html /: no file can be written"),
        (["run", "demo", "--serve", "a 'b"], 2, "--serve a 'b: No closing quotation"),
        (["sweep", "demo", "--rates", "1,x"], 2, "give numbers above 0"),
        (["compare", "/no/a.json", "/no/b.json"], 2, "/no/a.json"),
        (["replay", "/no/t.csv"], 2, "/no/t.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], code: int, said: str, fake_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "sweep":
        arguments = [*arguments, "--base-url", url(fake_port)]
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("loadtest: ")


def test_a_server_that_is_no_such_api(fake_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo", "--base-url", f"{url(fake_port)}/elsewhere"]) == 3
    assert "/elsewhere/v1/models answers 404" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_scenario_that_ships_is_whole(path: Path) -> None:
    scenario = find_scenario(path.stem)
    assert scenario.name == path.stem and scenario.description


def test_ctrl_c_keeps_what_was_measured(fake_port: int, tmp_path: Path, quick: Path) -> None:
    kept = tmp_path / "part.json"
    command: list[Any] = [sys.executable, "-m", "loadtest", "run", str(quick), "--seconds", "60"]
    command += ["--base-url", url(fake_port), "--out", str(kept), "--quiet", "--seed", "77"]
    answered = len(get(fake_port, "/truth"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while len(get(fake_port, "/truth")) < answered + 3:
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped before its end" in out
    result = json.loads(kept.read_text())
    assert result["interrupted"] is True and result["outcomes"]["ok"] >= 1


FAKE = Path(__file__).with_name("fake_server.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_serve_starts_a_server_and_stops_it(quick: Path) -> None:
    port = free_port()
    serve = f"{sys.executable} {FAKE} {port}"
    command = ["run", str(quick), "--base-url", url(port), "--quiet", "--serve", serve]
    assert main(command) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_ends_at_once_is_quoted(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = f"{sys.executable} -c 'import sys; sys.exit(\"no such model\")'"
    command = ["run", str(quick), "--base-url", url(free_port()), "--serve", serve]
    assert main(command) == 3
    assert "ended with code 1; it said last: no such model" in capsys.readouterr().err


def test_serve_takes_no_server_that_is_there_already(
    fake_port: int, quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(quick), "--base-url", url(fake_port), "--serve", "true"]
    assert main(command) == 3
    assert "another server answers" in capsys.readouterr().err

"""What the command line says: help, what is misspelt, and why a server cannot start."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.config.options import OPTIONS
from server.startup.listener import explain
from server.startup.report import print_report


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )


def test_help_lists_every_option_with_its_default() -> None:
    result = command("serve", "--help")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    for option in OPTIONS[1:]:
        assert f"--{option.name}" in text
        if option.default is not None:
            assert f"(default: {option.default})" in text
    assert "the flag, the variable, the file, the default" in text


def test_without_a_command_there_is_help_and_models_lists_the_families() -> None:
    assert "COMMAND" in command().stdout
    assert "LlamaForCausalLM" in command("models").stdout


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["/no/such/folder"], {}, ["/no/such/folder"]),
        (["--dtype", "int3"], {}, ["--dtype"]),
        ([], {"QUIRE_PROT": "80"}, ["QUIRE_PROT"]),
        (["--port", "1", "--host", "203.0.113.1"], {}, ["--host 203.0.113.1 --port 1"]),
        (["--kv-cache-memory", "4KiB"], {}, ["KV cache", "--kv-cache-memory"]),
        (["--max-model-len", "99999999"], {}, ["99999999"]),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line_and_exits_with_2(
    arguments: list[str], variables: dict[str, str], words: list[str]
) -> None:
    result = command("serve", *arguments, **variables)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("quire: ")
    for word in words:
        assert word in result.stderr


def test_a_busy_port_is_refused_before_the_web_packages_are_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code = (
            "import sys; from server.cli import main; code = main(sys.argv[1:]);"
            "print(code, sorted({'uvicorn', 'fastapi', 'tokenizers'} & set(sys.modules)))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, "serve", "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.stdout == "2 []\n"
    assert f"--port {port}: Address already in use" in result.stderr
    assert f"curl http://127.0.0.1:{port}/version" in result.stderr  # who can be asked
    assert f"ss -ltnp 'sport = :{port}'" in result.stderr
    assert "--port takes another port" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--max-num-seq", "8"], "unknown option --max-num-seq; did you mean"),
        (["serve", "--max_num_seqs=8"], "did you mean --max-num-seqs?"),
        (["plan", "gpt2", "--max-model-length", "5"], "did you mean --max-model-len?"),
        (["serve", "--tensor-parallel", "2"], "quire serve --help lists what is known"),
        (["models", "--jsn"], "unknown option --jsn; did you mean --json?"),
        (["--verson"], "unknown option --verson; did you mean --version?"),
        (["serve", "/one", "/two"], "'/two' is one argument too many"),
    ],
)
def test_a_misspelt_flag_is_told_what_it_may_have_been(arguments: list[str], message: str) -> None:
    result = command(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "ports below 1024"),
        (errno.EADDRNOTAVAIL, "no interface of this machine has it"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_an_address_that_cannot_be_listened_on_says_why(number: int, says: str) -> None:
    assert says in explain(OSError(number, os.strerror(number)), "192.0.2.7", 80)


def test_a_busy_address_of_all_interfaces_is_asked_where_it_can_be_reached() -> None:
    busy = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    assert "curl http://127.0.0.1:80/version" in explain(busy, "0.0.0.0", 80)
    assert "curl http://[::1]:80/version" in explain(busy, "::", 80)


def test_a_refused_folder_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    assert f"{tmp_path}: config.json: " in command("serve", str(tmp_path)).stderr
    file.write_text("{}")
    assert f"{file}: a file; give the folder" in command("serve", str(file)).stderr


def test_a_report_that_nobody_can_read_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        print_report("ready")
        assert full.closed  # so that the interpreter does not fail at its end either

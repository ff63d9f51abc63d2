"""``quire serve`` as a person starts it: what it prints until it is ready, and a signal then."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server_process import ROOT, wait_until

SERVE = ("serve", "--port", "0", "--threads", "1")


def started(*command: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command, *SERVE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_demo_is_served_and_a_folder_of_our_name_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Started where there is a folder ``server``, as the installed script does."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text("raise RuntimeError('not ours')")
    installed = "import sys; from server.entry import main; sys.exit(main())"
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = started("-P", "-c", installed, cwd=tmp_path, env=paths)
    assert process.stdout is not None
    report = ""
    for line in process.stdout:
        report += line
        if "-d '{" in line:  # how to ask it, which is its last word
            break
    found = re.match(r"Quire serves quire-demo at (http://127\.0\.0\.1:\d+)", report)
    assert found, (report, process.communicate(timeout=60))
    for words in ("parameters", "bf16", "KV cache", "weights", "runtime", "curl"):
        assert words in report
    body = {"model": "quire-demo", "prompt": "import ", "temperature": 0, "max_tokens": 4}
    answer = httpx.post(f"{found[1]}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_ends_it_in_silence(number: int) -> None:
    process = started("-m", "server", cwd=ROOT, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: bool(children.read_text()), 60, "an engine")
    os.killpg(process.pid, number)  # as a terminal does
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "", "")

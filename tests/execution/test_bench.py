"""The bench runs offline and ends with one line of JSON; it needs none of the web packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.bench import engine as bench
from weights.synthetic.checkpoint import tiny_llama, write_checkpoint

WEB = ("zmq", "msgspec", "fastapi", "uvicorn", "prometheus_client", "transformers")


pytestmark = pytest.mark.usefixtures("keeps_threads")


def test_the_last_line_holds_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "READ_BYTES", 1 << 24)
    write_checkpoint(tiny_llama(num_layers=1), tmp_path, seed=0)
    options = "--batches 1 3 --rounds 2 --prompt-tokens 20 --output-tokens 5 --threads 1"
    assert bench.main([str(tmp_path), *options.split()]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [figure["batch"] for figure in report["batches"]] == [1, 3]
    for figure in report["batches"]:
        for name in ("prefill_tokens_per_second", "decode_tokens_per_second"):
            assert 0 < figure[name]["min"] <= figure[name]["median"] <= figure[name]["max"]
        decoded = figure["decode_tokens_per_second"]["median"] / figure["batch"]
        rate = figure["decode_step_bytes"] * decoded
        assert figure["decode_bytes_per_second"] == pytest.approx(rate)
        fraction = figure["decode_bytes_per_second"] / report["memory_bytes_per_second"]
        assert figure["bandwidth_fraction"] == pytest.approx(fraction)
    first, second = (figure["decode_step_bytes"] for figure in report["batches"])
    assert second - first == 2 * (20 + 5 // 2) * 2 * 2 * 16 * 4  # rows x context x K, V of float32


@pytest.mark.parametrize("arguments", [["--output-tokens", "2"], ["--batches", "0"]])
def test_sizes_that_measure_nothing_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(arguments)


@pytest.mark.parametrize(
    ("module", "absent"), [("server.bench.engine", WEB), ("server.memory.layout", (*WEB, "torch"))]
)
def test_imports_stay_light(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_folder_that_cannot_be_served_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path, "config.json")):
        assert bench.main([str(folder), "--threads", "1"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert str(folder) in line
        assert words in line

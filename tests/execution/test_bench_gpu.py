"""The GPU's engine rows run on a CPU with tiny shapes: what they count, not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server import bench_gpu
from server.bench_gpu import EngineRow
from server.bench_shapes import gpu_shapes
from weights.inventory import num_parameters
from weights.synthetic import tiny_llama

ROWS = (EngineRow("tiny", 1, 20, 5, "a goal"), EngineRow("tiny", 3, 20, 5))


def test_the_rows_are_measured_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_gpu, "COPY_BYTES", 1 << 22)
    shapes = {"tiny": tiny_llama(num_layers=1)}
    assert bench_gpu.bench(ROWS, shapes, on_gpu=False, peers=False, out=tmp_path) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    (kept,) = tmp_path.glob("engine-*.json")
    assert json.loads(kept.read_text()) == report
    assert [row["row"]["batch"] for row in report["rows"]] == [1, 3]
    for row in report["rows"]:
        assert row["tpot"] > 0
        assert 0 <= row["idle_share"] < 1
        assert row["bandwidth_share"] == pytest.approx(row["floor"] / row["tpot"])
        assert row["first_token"] > 0
        assert row["prefill_tokens_per_second"] > 0
    floors = [row["floor"] * report["copy_bytes_per_second"] for row in report["rows"]]
    assert floors[1] - floors[0] == pytest.approx(2 * (20 + 5 // 2) * 2 * 2 * 16 * 4)
    (load,) = report["loads"]
    assert load["load_bytes_per_second"] > 0
    assert "a goal" in printed


def test_the_shapes_have_the_published_numbers_of_parameters() -> None:
    sizes = {name: num_parameters(model) for name, model in gpu_shapes().items()}
    assert sizes["llama-3.1-8b"] == 8_030_261_248
    assert sizes["llama-3.2-1b"] == 1_235_814_400
    # Qwen3-0.6B has 596,049,920 with 28 layers' two norms of 128.
    assert sizes["qwen3-0.6b-without-qk-norm"] == 596_049_920 - 28 * 2 * 128


def test_without_a_gpu_the_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        bench_gpu.main([])
    assert "no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_gpu.main(["--only", "nothing like it"])
    assert "no row has" in capsys.readouterr().err

"""The GPU's engine rows run on a CPU with tiny shapes: what they count, not how fast it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.bench import gpu as bench_gpu
from server.bench.peers import transformers as bench_peers
from server.bench.record import EngineRow
from server.bench.serving import Batch, serve
from server.bench.shapes import gpu_shapes
from server.engine.request import SamplingParams, Task
from server.engine.step_plan import ForwardHandle, RowResult, StepPlan, StepResult
from server.memory.backends.torch_cpu import TORCH
from server.memory.backends.triton_cuda import TRITON
from server.memory.kv_groups import kv_cache_spec
from weights.inventory import num_parameters
from weights.synthetic.checkpoint import tiny_llama

# The second row's prompts take more than four steps of 64 tokens.
ROWS = (EngineRow("tiny", 1, 20, 12, "a goal"), EngineRow("tiny", 14, 20, 12))


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "COPY_BYTES", 1 << 22)


def bench(folder: Path, *, peers: bool = False) -> None:
    shapes = {"tiny": tiny_llama(num_layers=1)}
    assert bench_gpu.bench(ROWS, shapes, TORCH, peers=peers, out=folder) == 0


def kept(folder: Path) -> dict[str, Any]:
    (path,) = folder.iterdir()
    assert path.match("engine-*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_the_rows_are_measured_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(tmp_path)
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert kept(tmp_path) == report
    assert [row["row"]["batch"] for row in report["rows"]] == [1, 14]
    for row in report["rows"]:
        assert row["tpot"] > 0
        assert 0 <= row["idle_share"] < 1
        assert row["bandwidth_share"] == pytest.approx(row["floor"] / row["tpot"])
        assert row["first_token"] > 0
        assert row["prefill_tokens_per_second"] > 0
    floors = [row["floor"] * report["copy_bytes_per_second"] for row in report["rows"]]
    assert floors[1] - floors[0] == pytest.approx(13 * (20 + 12 // 2) * 2 * 2 * 16 * 4)
    (load,) = report["loads"]
    assert load["load_bytes_per_second"] > 0
    assert report["peers"] == []
    assert "a goal" in printed


def test_a_run_that_is_stopped_leaves_the_rows_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_row = bench_gpu.run_row

    def stopped(built: Any, row: EngineRow, bandwidth: float) -> Any:
        if row.batch > 1:
            raise KeyboardInterrupt
        return run_row(built, row, bandwidth)

    monkeypatch.setattr(bench_gpu, "run_row", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path)
    assert [row["row"]["batch"] for row in kept(tmp_path)["rows"]] == [1]
    assert "tiny batch 1 prompt 20" in capsys.readouterr().out


def test_a_peer_that_fails_is_a_line_and_costs_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def fail(*_: object, **__: object) -> None:
        calls.append("from_pretrained")
        assert len(kept(tmp_path)["rows"]) == len(ROWS)
        raise torch.OutOfMemoryError("no room\nfor it")

    library = SimpleNamespace(AutoModelForCausalLM=SimpleNamespace(from_pretrained=fail))
    monkeypatch.setattr(bench_peers, "import_module", lambda _: library)
    bench(tmp_path, peers=True)
    report = kept(tmp_path)
    assert len(calls) == len(report["rows"]) == len(ROWS)
    assert [peer["tokens_per_second"] for peer in report["peers"]] == [None, None]
    assert [peer["row"] for peer in report["peers"]] == [row.name for row in ROWS]
    assert capsys.readouterr().out.count("no figure: OutOfMemoryError: no room for it\n") == 2


@pytest.mark.parametrize("given", [2, 1], ids=["all tokens", "too few"])
def test_a_peer_must_generate_all_tokens(
    given: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(inputs: list[list[int]], generation_config: object) -> dict[int, Any]:
        answers = (SimpleNamespace(generated_tokens=[0] * given) for _ in inputs)
        return dict(enumerate(answers))

    model = SimpleNamespace(generate_batch=generate)
    model.to = lambda device: model
    auto = SimpleNamespace(from_pretrained=lambda *_, **__: model)
    library = SimpleNamespace(AutoModelForCausalLM=auto, GenerationConfig=SimpleNamespace)
    monkeypatch.setattr(bench_peers, "import_module", lambda _: library)
    found = bench_peers.transformers_outcome("row", tmp_path, [[1]] * 3, 2, torch.device("cpu"))
    if given == 2:
        assert found.tokens_per_second is not None and not found.reason
    else:
        assert found.tokens_per_second is None and "3 of 6 tokens" in found.reason


@dataclass(frozen=True)
class Done:
    """Every row that samples gets a token."""

    plan: StepPlan

    def result(self) -> StepResult:
        rows = (RowResult(row.row, (1,) if row.samples else ()) for row in self.plan.rows)
        return StepResult(self.plan.step_id, tuple(rows))


class Overlapping:
    """An executor that computes nothing and, as a GPU's, takes a step before the last is done."""

    overlaps = True
    supported_tasks = frozenset({Task.GENERATE})

    def max_decode_steps(self, sampling: SamplingParams) -> int:
        return 1

    def forward(self, plan: StepPlan) -> StepPlan:
        return plan

    def sample(self, handle: ForwardHandle, masks: dict[int, bytes] | None) -> Done:
        assert isinstance(handle, StepPlan)
        return Done(handle)


@pytest.mark.parametrize("shape", gpu_shapes())
def test_every_row_decodes_as_a_whole_for_ten_steps(shape: str) -> None:
    model = gpu_shapes()[shape]
    own = [row for row in bench_gpu.ROWS if row.shape == shape]
    assert own
    for invariant, chosen in bench_gpu.passes(own, TRITON):
        config = bench_gpu.engine_config(chosen, TRITON, batch_invariant=invariant)
        kv = kv_cache_spec(model, config.cache)
        for row in chosen:
            requests = row.load.requests(model.vocab_size, seed=0)
            served = serve(Overlapping(), kv, config.scheduler, requests)
            assert served.prefill_steps, row
            assert len(served.full_decode_steps(row.batch)) >= 10, row
            assert not any(step.num_preemptions for step in served.steps), row


class Failing(Overlapping):
    def forward(self, plan: StepPlan) -> StepPlan:
        raise ArithmeticError("no step succeeds")


@pytest.mark.parametrize(("executor", "prompt_tokens"), [(Failing(), 20), (Overlapping(), 100)])
def test_a_batch_that_fails_gives_no_figures(executor: Overlapping, prompt_tokens: int) -> None:
    """A step that raises, and a prompt that is refused because it is too long."""
    model = tiny_llama(num_layers=1)
    config = bench_gpu.engine_config(ROWS, TORCH, batch_invariant=False)
    kv = kv_cache_spec(model, config.cache)
    requests = Batch(1, prompt_tokens, 2).requests(model.vocab_size, seed=0)
    with pytest.raises(RuntimeError, match="a request of the bench failed"):
        serve(executor, kv, config.scheduler, requests)


def test_a_pass_without_rows_is_left_out() -> None:
    large = [row for row in bench_gpu.ROWS if "batch 256" in row.name]
    assert list(bench_gpu.passes(large, TRITON)) == [(False, large)]
    own = [row for row in bench_gpu.ROWS if row.shape == "llama-3.1-8b"]
    (plain, invariant) = bench_gpu.passes(own, TRITON)
    assert plain == (False, own)
    assert invariant == (True, [row for row in own if row.batch <= 64])
    assert list(bench_gpu.passes(own, TORCH)) == [(False, own)]


def test_the_shapes_have_the_published_numbers_of_parameters() -> None:
    sizes = {name: num_parameters(model) for name, model in gpu_shapes().items()}
    assert sizes["llama-3.1-8b"] == 8_030_261_248
    assert sizes["llama-3.2-1b"] == 1_235_814_400
    # Qwen3-0.6B has 596,049,920 with 28 layers' two norms of 128.
    assert sizes["qwen3-0.6b-without-qk-norm"] == 596_049_920 - 28 * 2 * 128


def test_without_a_gpu_the_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        bench_gpu.main([])
    assert "no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_gpu.main(["--only", "nothing like it"])
    assert "no row has" in capsys.readouterr().err

"""The engine on a GPU gives what it gives on a CPU, and the same in every way of running it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from server.engine.core import EngineCore
from server.execution.cuda_graphs import GraphMode
from server.execution.model_runner import ModelRunner
from tests.gpu.gpu_engine import Model, bits_of, run, shape, tokens_of
from weights.checkpoint.folder import open_checkpoint
from weights.families import resolve
from weights.loading.loader import load
from weights.loading.pinned_reader import CudaCopies
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2

REPOSITORY = Path(__file__).parents[2]
# Of log-probabilities, against float32 on the CPU: 16-bit weights and activations through 4 layers.
MEAN_NATS, MOST_NATS = 0.1, 1.5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(shape(), folder, seed=0, format="bf16")
    return Model(folder, shape().vocab_size)


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.mark.parametrize("format", ["bf16", "f16"])
def test_prompts_score_as_they_do_in_float32_on_the_cpu(model: Model, format: str) -> None:
    requests = model.requests(2, max_tokens=0, prompt_logprobs=0)
    here = run(model.build(format=format), requests)
    there = run(model.build(format="f32", backend="torch"), requests)
    for request_id, expected in there.prompts.items():
        got = np.concatenate([nats[:, 0] for nats in here.prompts[request_id]])
        wanted = np.concatenate([nats[:, 0] for nats in expected])
        errors = np.abs(got - wanted)
        assert errors.mean() < MEAN_NATS
        assert errors.max() < MOST_NATS


def test_captured_steps_give_the_bits_of_eager_ones(model: Model) -> None:
    requests = model.requests(12)
    eager = run(model.build(graphs=GraphMode.OFF), requests)
    built = model.build(graphs=GraphMode.START)
    if built.layout.graph_phase is not None:
        graphs = cast(ModelRunner, built.runner).graphs
        assert graphs.captured == graphs.sizes
    assert bits_of(run(built, requests)) == bits_of(eager)


def test_overlapped_steps_give_the_bits_of_single_ones(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A row that ends late stays in one more batch, which may only change nothing in this mode.
    requests = model.requests(12, max_tokens=20, ignore_eos=False)
    overlapped = run(model.build(batch_invariant=True), requests)
    monkeypatch.setattr(ModelRunner, "overlaps", property(lambda _: False))
    assert bits_of(run(model.build(batch_invariant=True), requests)) == bits_of(overlapped)


def test_in_batch_invariant_mode_company_changes_no_bit(model: Model) -> None:
    built = model.build(batch_invariant=True)
    requests = model.requests(20)
    alone = run(built, requests, one_by_one=True)
    assert bits_of(run(built, requests)) == bits_of(alone)
    assert bits_of(run(built, requests, budget=96)) == bits_of(alone), "nor do chunks"
    assert bits_of(run(built, requests, prefix_caching=True)) == bits_of(alone), "nor a cache"


def test_in_batch_invariant_mode_a_preemption_changes_no_bit(model: Model) -> None:
    built = model.build(batch_invariant=True)
    requests = model.requests(8)

    def preempt(core: EngineCore, step: int) -> None:
        core.scheduler.preempt(f"r{step % 8}", 0)

    preempted = run(built, requests, on_step=preempt)
    assert preempted.preemptions > 3
    assert bits_of(preempted) == bits_of(run(built, requests))


def test_drawn_tokens_follow_from_the_seed(model: Model) -> None:
    built = model.build(batch_invariant=True)
    requests = model.requests(8, temperature=0.8, top_p=0.9, top_k=50, seed=7)
    assert tokens_of(run(built, requests)) == tokens_of(run(built, requests, one_by_one=True))


def test_a_decode_step_is_handed_over_without_waiting(model: Model) -> None:
    built = model.build(graphs=GraphMode.START)
    run(built, model.requests(6))  # compiles what the steps need
    core = EngineCore(built.runner, built.kv, built.layout.config.scheduler)
    core.submit(model.requests(6, max_tokens=16))
    for _ in range(4):
        core.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(8):
            core.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert core.gauges().failed_steps == 0
    while core.has_work:
        core.step()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_through_pinned_buffers_are_those_of_the_files(
    model: Model, family: str, tmp_path: Path
) -> None:
    folder = model.folder
    if family == "gpt2":
        folder = tmp_path
        write_checkpoint(tiny_gpt2(hidden_size=256, num_layers=2), folder, seed=1)
    checkpoint = open_checkpoint(folder)
    spec = resolve(checkpoint.config).spec(checkpoint.config)

    def keep(
        weight: torch.Tensor, format: str, bias: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        return [weight.clone()] + ([] if bias is None else [bias.clone()])

    device = torch.device("cuda")
    found = load(
        checkpoint, spec, format="bf16", device=device, pack=keep, copies=CudaCopies(device)
    )
    expected = load(checkpoint, spec, format="bf16", pack=keep)
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name].cpu(), tensor), name
    for name, parts in expected.linears.items():
        same = [torch.equal(a.cpu(), b) for a, b in zip(found.linears[name], parts, strict=True)]
        assert all(same), name


def test_a_short_run_touches_no_memory_that_is_not_its_own(tmp_path: Path) -> None:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        pytest.skip("compute-sanitizer is not on this machine")
    # Libraries ask a driver for functions that it may not have: that is no access to memory.
    check = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9"]
    result = subprocess.run(
        [*check, sys.executable, "-m", "tests.gpu.sanitized_run"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if result.returncode not in (0, 9) and "Unable to" in result.stdout + result.stderr:
        pytest.skip(f"compute-sanitizer cannot run here: {result.stdout[-200:]}")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]

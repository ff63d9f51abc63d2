"""A third backend, all of it in this file: it serves a request, declines what it cannot do, and its
books balance.

Its tensors lie in the host's memory, as the CPU's do, and most operations are the CPU's. Its own
are the matrix product and what goes with it: a layer's matrices are held as their transposes, each
output channel divided by a power of two that is kept beside it, which loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import AttentionShape, KernelBackend, LinearWeight
from kernels.backends import TORCH_CPU
from server.engine.engine_config import EngineConfig
from server.engine.events import ChoiceOutput
from server.engine.request import EngineRequest, FinishReason, SamplingParams
from server.errors import StartupError
from server.execution.cpu_device import CpuDevice
from server.execution.device import OpenedDevice
from server.ipc.engine_info import EngineSettings
from server.memory.accounting.cpu import CpuMemory
from server.memory.accounting.process import take
from server.memory.backends import registry as backends
from server.memory.backends.cpu import CPU
from server.memory.backends.registry import backend_named, register
from server.memory.engine_args import EngineArgs
from server.memory.kinds import MemoryKind, Shapes
from server.memory.planner.plan import MemoryPlan
from server.memory.planner.planner import plan_memory
from server.startup.placement import refuse_model
from server.worker.build import BuiltEngine, build_engine
from weights import formats
from weights.formats import QuantisedFormat
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

MIB = 2**20
LLAMA = tiny_llama()
SCALED = QuantisedFormat("scaled", bits=32, group=None, scale_bytes=4)
products = {"scaled": 0, "plain": 0}  # rows that went through each way of multiplying


def pack_linear(
    weight: Tensor, format: str, bias: Tensor | None = None, *, batch_invariant: bool = False
) -> LinearWeight:
    """Transposed, scaled: not the form of any other backend."""
    shape = (weight.shape[0], weight.shape[1])
    if format != SCALED.name:
        return LinearWeight(format, weight, bias, None, shape, weight.dtype)
    scales = torch.exp2(torch.floor(torch.log2(weight.abs().amax(dim=1).clamp(min=1e-30))))
    packed = (weight / scales.unsqueeze(1)).t().contiguous()
    return LinearWeight(format, packed, bias, scales, shape, weight.dtype)


def linear(
    x: Tensor, weight: LinearWeight, activation: str | None, residual: Tensor | None
) -> Tensor:
    products["plain" if weight.scales is None else "scaled"] += x.shape[0]
    if weight.scales is None:
        return torch.nn.functional.linear(x, weight.weight, weight.bias)
    out = torch.mm(x, weight.weight).mul_(weight.scales)
    return out if weight.bias is None else out.add_(weight.bias)


def attention_regions(shape: AttentionShape) -> dict[str, int]:
    return {**TORCH_CPU.attention_regions(shape), "own": 4096}


def own_buffers(model: ModelSpec, config: EngineConfig) -> Shapes:
    return (("own_counters", (config.scheduler.max_num_seqs, 1024), "i64"),)


def open_fake(config: EngineConfig, model_dir: Path) -> OpenedDevice:
    return OpenedDevice(CpuDevice(), CpuMemory(take()))


OWN = {name: f"{__name__}:{name}" for name in ("linear", "pack_linear")}
OPERATIONS = {**TORCH_CPU.operations, **OWN}
del OPERATIONS["add_layer_norm"]  # the one that it declines
THIRD = replace(
    CPU,
    name="third",
    place="the third backend",
    kernels=KernelBackend("third", "cpu", OPERATIONS, attention_regions),
    buffers=own_buffers,
    open_device=f"{__name__}:open_fake",
    quantisations=(SCALED.name,),
    packed_formats=(SCALED,),
)


@pytest.fixture(scope="module", autouse=True)
def third() -> Iterator[None]:
    """Known while these tests run: others of this process count the backends and formats."""
    register(THIRD)
    yield
    del backends._BACKENDS[THIRD.name]
    del formats._QUANTISED[SCALED.name]


def planned(spec: ModelSpec, backend: str, quantization: str | None) -> MemoryPlan:
    args = EngineArgs(
        device=backend,
        dtype="float32",
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_model_len=128,
        quantization=quantization,
    )
    return plan_memory(spec, args, 512 * MIB)


def settings(folder: Path, plan: MemoryPlan) -> EngineSettings:
    return EngineSettings(str(folder), plan.config, num_threads=1, debug_check_invariants=True)


def serve(engine: BuiltEngine, prompts: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    params = SamplingParams(seed=0, temperature=0.0, max_tokens=6, ignore_eos=True)
    engine.core.submit([EngineRequest(f"r{i}", tuple(p), params) for i, p in enumerate(prompts)])
    outputs: list[ChoiceOutput] = []
    while engine.core.has_work:
        frame = engine.core.step()
        assert frame is not None and not frame.refused
        outputs += frame.choices
    assert {o.finish_reason for o in outputs} == {None, FinishReason.LENGTH}
    names = dict.fromkeys(o.request_id for o in outputs)
    return {n: [t for o in outputs if o.request_id == n for t in o.token_ids] for n in names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    write_checkpoint(LLAMA, path, seed=3)
    return path


def test_it_serves_with_a_packed_format_of_its_own_and_its_books_balance(folder: Path) -> None:
    prompts = [(1, 5, 9, 2), (3, 3, 8, 1, 7, 6)]
    expected = serve(build_engine(settings(folder, planned(LLAMA, "cpu", None)), str), prompts)
    plan = planned(LLAMA, "third", SCALED.name)
    engine = build_engine(settings(folder, plan), str)
    products.update(scaled=0, plain=0)
    assert serve(engine, prompts) == expected
    assert products["scaled"] > products["plain"] > 0, "layers in its format, logits in float32"

    reading = engine.accountant.read()
    assert sum(held.now for held in reading.kinds.values()) == reading.total
    for kind in (MemoryKind.WEIGHTS, MemoryKind.KV_CACHE, MemoryKind.IO, MemoryKind.WORKSPACE):
        assert reading.kinds[kind].now == plan.kinds[kind] > 0, kind
    assert engine.facts.weights == plan.layout.weights
    assert plan.layout.weights != planned(LLAMA, "cpu", None).layout.weights
    assert plan.layout.buffer("own_counters").nbytes == 4 * 1024 * 8
    activations = plan.kinds[MemoryKind.ACTIVATIONS]
    assert 0 < reading.kinds[MemoryKind.ACTIVATIONS].peak <= activations


def test_an_operation_that_it_declines_is_told_at_the_start(tmp_path: Path) -> None:
    """By the server before it starts an engine, and by an engine that is built all the same."""
    spec = tiny_gpt2()
    message = "cannot run on the third backend: it has no add_layer_norm there"
    with pytest.raises(StartupError, match=message):
        refuse_model(spec, backend_named("third"))
    write_checkpoint(spec, tmp_path, seed=0)
    with pytest.raises(StartupError, match=message):
        build_engine(settings(tmp_path, planned(spec, "third", None)), str)


def test_a_format_is_served_by_the_backends_that_have_it_only(folder: Path) -> None:
    plan = planned(LLAMA, "cpu", SCALED.name)
    with pytest.raises(StartupError, match="a CPU multiplies no weights in scaled"):
        build_engine(settings(folder, plan), str)


def test_a_name_means_one_backend_and_one_format() -> None:
    register(THIRD)  # again: nothing changes
    with pytest.raises(ValueError, match="another backend named 'third'"):
        register(replace(THIRD, place="elsewhere"))
    with pytest.raises(ValueError, match="another format named 'int8'"):
        register(replace(THIRD, name="fourth", packed_formats=(replace(SCALED, name="int8"),)))
    with pytest.raises(ValueError, match="unknown backend 'fourth'; known: cpu, cuda, third"):
        backend_named("fourth")

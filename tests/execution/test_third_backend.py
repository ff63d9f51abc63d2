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
from server.config.options import OPTIONS
from server.config.server_config import resolve
from server.engine.engine_config import EngineConfig
from server.engine.events import ChoiceOutput
from server.engine.request import EngineRequest, FinishReason, SamplingParams
from server.errors import StartupError
from server.execution.cpu_device import CpuDevice
from server.execution.device import OpenedDevice
from server.memory.accounting.cpu import CpuMemory
from server.memory.accounting.process import take
from server.memory.backends.record import FoundDevice, Unusable
from server.memory.backends.registry import backend_named, register, registered, unregister
from server.memory.backends.torch_cpu import TORCH
from server.memory.kinds import MemoryKind, Shapes
from server.metrics.registry import WEIGHTS
from server.startup.model_info import ModelInfo, engine_settings, read_model
from server.startup.placement import place
from server.startup.report import version_report
from server.worker.build import BuiltEngine, build_engine
from tests.native_kernels import ON_A_CPU
from weights.formats import QUANTISED, QuantisedFormat
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

MIB, GIB = 2**20, 2**30
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


def find_third() -> FoundDevice:
    return FoundDevice("a third device", 2 * GIB, 1 * GIB, runtime=100 * MIB)


def find_nothing() -> FoundDevice:
    raise Unusable("its library is not built here")


def open_fake(config: EngineConfig, model_dir: Path) -> OpenedDevice:
    return OpenedDevice(CpuDevice(), CpuMemory(take()))


OWN = {name: f"{__name__}:{name}" for name in ("linear", "pack_linear")}
OPERATIONS = {**TORCH_CPU.operations, **OWN}
del OPERATIONS["add_layer_norm"]  # the one that it declines
PARTS = replace(
    TORCH.parts,
    kernels=KernelBackend("third", "cpu", OPERATIONS, attention_regions),
    buffers=own_buffers,
)
THIRD = replace(
    TORCH,
    name="third",
    device="third",
    place="the third device",
    preference=None,
    find=f"{__name__}:find_third",
    parts_at=f"{__name__}:PARTS",
    open_device=f"{__name__}:open_fake",
    quantisations=(SCALED.name,),
    packed_formats=(SCALED,),
)


@pytest.fixture(scope="module", autouse=True)
def third() -> Iterator[None]:
    """Known while these tests run: others of this process count the backends and formats."""
    with registered(THIRD):
        yield


def read(folder: Path, device: str, **flags: str) -> ModelInfo:
    """As quire serve reads it."""
    sizes = {"max-num-seqs": "4", "max-num-batched-tokens": "64", "max-model-len": "128"}
    given = {"model-dir": str(folder), "device": device, "dtype": "float32", **sizes, **flags}
    return read_model(resolve(given, {}))


def build(model: ModelInfo) -> BuiltEngine:
    config = resolve({"model-dir": str(model.folder), "threads": "1"}, {})
    settings = engine_settings(config, model)
    return build_engine(replace(settings, debug_check_invariants=True), str)


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


def written(tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec) -> Path:
    path = tmp_path_factory.mktemp(spec.family)
    write_checkpoint(spec, path, seed=3)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory, LLAMA)


@pytest.fixture(scope="module")
def declined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that needs the operation that it has not."""
    return written(tmp_path_factory, tiny_gpt2())


def test_it_serves_with_a_packed_format_of_its_own_and_its_books_balance(folder: Path) -> None:
    prompts = [(1, 5, 9, 2), (3, 3, 8, 1, 7, 6)]
    on_cpu = read(folder, "cpu")
    expected = serve(build(on_cpu), prompts)
    model = read(folder, "third", quantization=SCALED.name)
    engine, plan = build(model), model.plan
    products.update(scaled=0, plain=0)
    assert serve(engine, prompts) == expected
    assert products["scaled"] > products["plain"] > 0, "layers in its format, logits in float32"

    reading = engine.accountant.read()
    assert sum(held.now for held in reading.kinds.values()) == reading.total
    for kind in (MemoryKind.WEIGHTS, MemoryKind.KV_CACHE, MemoryKind.IO, MemoryKind.WORKSPACE):
        assert reading.kinds[kind].now == plan.kinds[kind] > 0, kind
    assert engine.facts.weights == plan.layout.weights != on_cpu.plan.layout.weights
    assert plan.layout.buffer("own_counters").nbytes == 4 * 1024 * 8
    activations = plan.kinds[MemoryKind.ACTIVATIONS]
    assert 0 < reading.kinds[MemoryKind.ACTIVATIONS].peak <= activations


def test_its_device_is_placed_and_told_of_by_its_record(folder: Path) -> None:
    model = read(folder, "third", quantization=SCALED.name)
    assert model.plan.available_bytes == 1 * GIB - 100 * MIB - model.placement.api_memory
    told = version_report(resolve({"model-dir": str(folder)}, {}), model)
    assert (told["device"], told["backend"]) == ("third", "third")
    device, quantization = (
        next(option for option in OPTIONS if option.name == name)
        for name in ("device", "quantization")
    )
    assert device.form == "auto|cpu|cuda|third"
    assert device.help.endswith("auto is cuda where torch can use a GPU, else cpu"), "never third"
    assert quantization.form == "none|int8|int4|fp8|scaled"
    assert quantization.help.endswith("; scaled on the third device only")
    labels = {label.name: label.values or () for label in WEIGHTS.labels}
    assert labels["device"] == ("cpu", "cuda", "third") and SCALED.name in labels["dtype"]
    with pytest.raises(StartupError, match=r"scaled needs the third device, .* on a CPU"):
        read(folder, "cpu", quantization=SCALED.name)
    with pytest.raises(StartupError, match=r"batch-invariant needs a GPU, .* on the third device"):
        read(folder, "third", **{"batch-invariant": "on"})


def test_an_operation_that_it_declines_is_told_at_the_start(declined: Path) -> None:
    """By the server before it starts an engine, and by an engine that is built all the same."""
    message = "cannot run on the third device: it has no add_layer_norm there"
    with pytest.raises(StartupError, match=f"{message}; --device cpu serves it"):
        read(declined, "third")
    on_cpu = read(declined, "cpu")
    settings = engine_settings(resolve({"model-dir": str(declined)}, {}), on_cpu)
    moved = replace(settings.config, model=replace(settings.config.model, backend="third"))
    with pytest.raises(StartupError, match=message):
        build_engine(replace(settings, config=moved), str)


def test_a_format_is_served_by_the_backends_that_have_it_only(folder: Path) -> None:
    settings = engine_settings(
        resolve({"model-dir": str(folder)}, {}), read(folder, "third", quantization=SCALED.name)
    )
    moved = replace(settings.config, model=replace(settings.config.model, backend="torch"))
    with pytest.raises(StartupError, match="the backend torch multiplies no weights in scaled"):
        build_engine(replace(settings, config=moved), str)


def test_of_the_backends_of_a_device_the_preferred_one_serves_or_it_is_told_why_not(
    folder: Path, declined: Path
) -> None:
    """A second one for the CPU, before torch's: by that device's name, and by auto."""
    fast = replace(THIRD, name="fast", device="cpu", place="a CPU", preference=50)
    with registered(fast):
        for device in ("cpu", "auto"):
            placed = read(folder, device).placement
            assert placed.backend is fast
            assert [why.split(":")[0] for why in placed.passed_over] == ["triton"] * (
                device == "auto"
            )
        without = read(declined, "cpu")
        assert without.placement.backend is ON_A_CPU
        assert without.plan.config.model.backend == ON_A_CPU.name
        why = without.placement.passed_over[0]
        problem = "this model cannot run on a CPU: it has no add_layer_norm there"
        assert why == f"fast: {problem}; --device cuda serves it"
        assert read(folder, "cpu", quantization=SCALED.name).placement.backend is fast
    assert SCALED.name in QUANTISED, "of the third, whatever others had it for a while"
    gone = replace(fast, find=f"{__name__}:find_nothing")
    with registered(gone):
        placed = read(folder, "cpu").placement
        assert placed.backend is ON_A_CPU
        assert placed.passed_over[0] == "fast: its library is not built here"
    problem = "--device gone: its library is not built here; --device cpu serves without that disk"
    alone = replace(gone, device="gone", place="that disk")
    with registered(alone), pytest.raises(StartupError, match=problem):
        place(resolve({"device": "gone"}, {}))


def test_a_name_means_one_backend_and_one_format() -> None:
    register(THIRD)  # again: nothing changes
    with pytest.raises(ValueError, match="another backend named 'third'"):
        register(replace(THIRD, place="elsewhere"))
    with pytest.raises(ValueError, match="another format named 'int8'"):
        register(replace(THIRD, name="fourth", packed_formats=(replace(SCALED, name="int8"),)))
    with pytest.raises(
        ValueError, match="unknown backend 'fourth'; known: torch, native, triton, third"
    ):
        backend_named("fourth")
    with registered(replace(THIRD, name="fourth", packed_formats=())):
        assert backend_named("fourth").place == THIRD.place
    with pytest.raises(ValueError, match="unknown backend 'fourth'"):
        backend_named("fourth")
    with pytest.raises(ValueError, match="'fourth' is not registered"):
        unregister(replace(THIRD, name="fourth"))

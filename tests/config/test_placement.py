"""Where the model runs, on machines with and without a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.config.server_config import resolve
from server.errors import StartupError
from server.memory.accounting.gpu_device import GpuDevice, find_gpu
from server.memory.accounting.nvml import DeviceUse
from server.memory.backends.native_cpu import NATIVE
from server.memory.backends.record import Backend, FoundDevice, Unusable
from server.memory.backends.torch_cpu import TORCH
from server.memory.backends.torch_cpu import parts as torch_parts
from server.memory.backends.triton_cuda import TRITON
from server.memory.backends.triton_cuda import parts as triton_parts
from server.memory.engine_args import EngineArgs
from server.memory.planner.planner import plan_memory
from server.memory.planner.resolve_args import resolve_engine
from server.startup.dtype_choice import choose_dtype
from server.startup.placement import Placement, place, refuse_model
from server.startup.report import determinism
from tests.native_kernels import ON_A_CPU, needs_native
from weights.formats import FORMATS
from weights.presets import find_preset
from weights.spec import ModelSpec, QkNorm
from weights.synthetic.tiny_specs import tiny_llama

GIB = 2**30
H200 = GpuDevice("NVIDIA H200", (9, 0), 140 * GIB, 130 * GIB)
OLD = replace(H200, name="Tesla T4", capability=(7, 5))


LINEAR_ALONE = replace(
    TRITON.parts,
    kernels=replace(TRITON.parts.kernels, operations={"linear": "kernels.gpu.linear:linear"}),
)


def placed(
    model: ModelSpec | None = None,
    *,
    gpu: GpuDevice | None = H200,
    torch_cuda: bool = True,
    **flags: str,
) -> Placement:
    named = {name.replace("_", "-"): value for name, value in flags.items()}

    def find(backend: Backend) -> FoundDevice:
        if backend is TRITON:
            return triton_parts.find_cuda(lambda: gpu, lambda: torch_cuda)
        return backend.find_device()

    return place(resolve(named, {}), model, find=find)


def test_auto_takes_a_gpu_that_can_be_used_and_else_the_cpu() -> None:
    assert (placed().backend, placed().found.title) == (TRITON, H200.name)
    assert placed().passed_over == ()
    for found in (placed(gpu=None), placed(torch_cuda=False), placed(gpu=OLD)):
        assert found.backend is ON_A_CPU
        assert [why.split(": ")[0] for why in found.passed_over][:1] == ["triton"]
    assert "no NVIDIA driver" in placed(gpu=None).passed_over[0]
    assert placed(device="cpu").backend is ON_A_CPU


@needs_native
def test_a_cpu_has_native_kernels_where_they_are_built_and_else_torch() -> None:
    assert (placed(device="cpu").backend, placed(device="cpu").passed_over) == (NATIVE, ())

    def find(backend: Backend) -> FoundDevice:
        if backend is NATIVE:
            raise Unusable("its kernels were not built")
        return backend.find_device()

    without = place(resolve({"device": "cpu"}, {}), find=find)
    assert without.backend is TORCH
    assert without.passed_over == ("native: its kernels were not built",)


@pytest.mark.parametrize(
    ("gpu", "torch_cuda", "words"),
    [
        (None, True, "no NVIDIA driver"),
        (H200, False, "torch is built without CUDA"),
        (OLD, True, "Tesla T4 has compute capability 7.5"),
    ],
)
def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_an_error(
    gpu: GpuDevice | None, torch_cuda: bool, words: str
) -> None:
    with pytest.raises(StartupError, match=words) as raised:
        placed(gpu=gpu, torch_cuda=torch_cuda, device="cuda")
    assert "--device cpu serves without a GPU" in str(raised.value)


def test_the_device_decides_the_sizes_left_to_auto() -> None:
    def sizes(device: str = "cuda", **given: int) -> tuple[int, int, int]:
        config = resolve_engine(
            EngineArgs(device=device, dtype="float32", **given), tiny_llama(), max_model_len=64
        )
        seqs, tokens = config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens
        return config.cache.block_size, seqs, tokens

    assert sizes() == (64, 256, 8192)
    assert sizes("cpu") == (16, 32, 512)
    given = {"block_size": 32, "max_num_seqs": 7, "max_num_batched_tokens": 99}
    assert sizes(**given) == sizes("cpu", **given) == (32, 7, 99)
    assert sizes("cpu", max_num_seqs=600) == (16, 600, 616)
    with pytest.raises(StartupError, match="below --max-num-seqs 32"):
        placed(device="cpu", max_num_batched_tokens="8")


def test_a_step_on_a_cpu_has_the_tokens_that_its_threads_compute_in_a_while() -> None:
    def tokens(preset: str, threads: int, seqs: int | None = None) -> int:
        args = EngineArgs(device="cpu", dtype="bfloat16", threads=threads, max_num_seqs=seqs)
        config = resolve_engine(args, find_preset(preset).spec, max_model_len=1024)
        return config.scheduler.max_num_batched_tokens

    # Layers of 358 M elements: 716 M operations a token, of 18 G for each thread.
    assert tokens("qwen2.5-0.5b", 2) == 48
    assert tokens("qwen2.5-0.5b", 8) == 192
    assert tokens("qwen2.5-0.5b", 64) == 512
    assert tokens("llama-3.1-8b", 2) == 32 + 16  # every row a token, and a prompt goes on
    assert tokens("llama-3.1-8b", 2, seqs=1) == 17


@pytest.mark.parametrize("option", ["batch_invariant", "quantization"])
def test_what_a_cpu_does_not_serve_is_refused_there(option: str) -> None:
    flags = {option: "on" if option == "batch_invariant" else "int4"}
    assert placed(**flags).backend is TRITON
    with pytest.raises(StartupError, match=f"--{option.replace('_', '-')}.*needs a GPU") as raised:
        placed(device="cpu", **flags)
    assert "\n" not in str(raised.value)


def test_a_kv_cache_in_a_format_of_its_own_needs_native_kernels() -> None:
    """Where the others keep it in the model's, that format may be named too."""
    for text in ("int8", "float16"):
        with pytest.raises(
            StartupError, match=f"--kv-cache-dtype {text} needs a CPU.*leave it out"
        ):
            placed(device="cuda", kv_cache_dtype=text)
        refused = f"--kv-cache-dtype {text} needs .*--backend native"
        with pytest.raises(StartupError, match=refused):
            placed(backend="torch", kv_cache_dtype=text)
        assert placed(kv_cache_dtype=text, device="cpu").backend is NATIVE
    for device in ("cpu", "cuda"):
        placed(device=device, dtype="float16", kv_cache_dtype="float16")


def test_dtype_auto_on_a_gpu_is_a_16_bit_format() -> None:
    model = tiny_llama()
    for stored, expected in (("bf16", "bf16"), ("f16", "f16"), ("f32", "bf16")):
        asked = EngineArgs(device="cuda")
        assert choose_dtype(asked, model, stored, GIB)[0].dtype == FORMATS[expected].torch_name
    wide = replace(asked, dtype="float32")
    assert choose_dtype(wide, model, "bf16", GIB) == (wide, "")


def asked_of_a_gpu(**changes: Any) -> EngineArgs:
    base = EngineArgs(device="cuda", dtype="bfloat16", max_num_seqs=64, max_num_batched_tokens=2048)
    return replace(base, **changes)


def test_the_cache_of_a_gpu_takes_all_that_is_left() -> None:
    plan = plan_memory(tiny_llama(), asked_of_a_gpu(), 4 * GIB)
    left = 4 * GIB - sum(plan.kinds.values())
    assert 0 <= left < plan.kv.page_bytes
    assert plan.kinds["graphs"] > 0
    assert plan.config.model.backend == "triton"
    half = plan_memory(tiny_llama(), asked_of_a_gpu(kv_cache_memory=2 * GIB), 4 * GIB)
    assert half.pool_limit == "--kv-cache-memory"
    assert half.kinds["kv_cache"] <= 2 * GIB


def test_the_plan_leaves_room_for_the_context_and_the_allocator() -> None:
    assert placed().available < H200.free - triton_parts.RUNTIME_BYTES


@pytest.mark.parametrize(("free", "left"), [(1024, 576), (600, 152), (200, 0)])
def test_a_small_container_keeps_room_for_what_runs_before_a_model(
    free: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the pool would take what torch needs, and the kernel would end the engine."""
    monkeypatch.setattr(torch_parts, "machine_memory", lambda: (free << 20, free << 20))
    assert placed(gpu=None).available == left << 20
    assert torch_parts.RUNTIME_BYTES == 320 << 20


def test_a_model_that_a_backend_lacks_something_for_is_refused_by_name() -> None:
    model = tiny_llama()
    refuse_model(model, TRITON)
    with pytest.raises(StartupError, match=r"it has no pack_linear, .*gated_activation there"):
        refuse_model(model, replace(TRITON, parts_at=f"{__name__}:LINEAR_ALONE"))
    wide = replace(model, attention=replace(model.attention, head_dim=512))
    with pytest.raises(StartupError, match=r"on a GPU: heads of 512.*--device cpu"):
        refuse_model(wide, TRITON)
    whole = replace(
        model.attention, num_query_heads=128, num_kv_heads=128, head_dim=256, qk_norm=QkNorm.WHOLE
    )
    with pytest.raises(StartupError, match="rows of 32768 are wider than 16384"):
        refuse_model(replace(model, attention=whole), TRITON)
    with pytest.raises(StartupError, match="rows of 32768 are wider than 16384"):
        refuse_model(replace(model, hidden_size=32768), TRITON)
    refuse_model(wide, TORCH)
    with pytest.raises(StartupError, match=r"on a GPU: heads of 512"):
        placed(wide)  # auto takes a device, whatever the model
    assert placed(wide, gpu=None).backend is ON_A_CPU


def test_answers_are_equal_to_the_bit_in_batch_invariant_mode_only() -> None:
    assert "bit for bit" in determinism("bf16", TRITON, batch_invariant=True)
    assert "--batch-invariant" in determinism("bf16", TRITON)
    assert "--dtype float32" in determinism("bf16", TORCH)
    assert "bit for bit" not in determinism("bf16", TRITON)


# -- the driver's libraries -----------------------------------------------------------------------


def set_value(pointer: Any, value: int) -> None:
    pointer._obj.value = value


class FakeDriver:
    """libcuda with one device of capability 9.0."""

    def __init__(self, devices: int = 1, error: int = 0) -> None:
        self.devices, self.error = devices, error

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDeviceGetCount(self, count: Any) -> int:
        set_value(count, self.devices)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"NVIDIA H200"
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, device: Any) -> int:
        set_value(total, 140 * GIB)
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:
        set_value(value, {75: 9, 76: 0}[which])
        return 0

    def cuDeviceGetPCIBusId(self, text: Any, size: int, device: Any) -> int:
        text.value = b"0000:19:00.0"
        return 0

    def cuDeviceGetUuid_v2(self, raw: Any, device: Any) -> int:
        raw.raw = bytes(range(16))
        return 0


class FakeNvml:
    """Answers for the device whose identity the driver gave."""

    def read(self) -> DeviceUse:
        return DeviceUse(140 * GIB, 131 * GIB)


def found(driver: FakeDriver | None = None, *, nvml: bool = False) -> GpuDevice | None:
    def open_library(name: str) -> Any:
        if driver is None or "cuda" not in name:
            raise OSError(name)
        return driver

    def open_management(uuid: str, bus_id: str) -> Any:
        assert uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
        assert bus_id == "0000:19:00.0"
        return FakeNvml() if nvml else None

    return find_gpu(open_library, open_management)


def test_the_driver_names_the_device_and_nvml_its_free_memory() -> None:
    expected = GpuDevice("NVIDIA H200", (9, 0), 140 * GIB, 131 * GIB)
    assert found(FakeDriver(), nvml=True) == expected
    assert found(FakeDriver()) == replace(expected, free=140 * GIB)


def test_no_driver_no_device_or_a_driver_that_fails_is_no_gpu() -> None:
    assert found() is None
    assert found(FakeDriver(devices=0)) is None
    assert found(FakeDriver(error=100)) is None

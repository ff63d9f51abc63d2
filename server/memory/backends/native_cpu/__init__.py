"""The CPU through native kernels, in memory that is shared with the whole machine."""

from __future__ import annotations

from server.memory.backends.record import Backend
from server.memory.backends.torch_cpu import CPU_DEFAULTS

NATIVE = Backend(
    name="native",
    device="cpu",
    place="a CPU",
    preference=10,
    found_where="there is no other",
    find="server.memory.backends.native_cpu.parts:find_native",
    parts_at="server.memory.backends.native_cpu.parts:PARTS",
    device_at="server.execution.cpu_device:NativeCpuDevice",
    open_device="server.execution.cpu_device:open_native",
    decoder_at="server.execution.native_decoder:build_decoder",
    level_at="server.memory.backends.native_cpu.parts:check_level",
    defaults=CPU_DEFAULTS,
    equal_bits="answers are equal to the bit without it",
    quantisations=("int8",),
    suggested_quantisations=("int8",),
    kv_formats=("f32", "bf16", "f16", "int8"),
    auto_dtype="the checkpoint's",
    bit_equal=True,
    packs_tables=True,
    unlike_heads=True,
    max_head_dim=512,
    head_dim_multiple=8,
    max_kv_groups=128,
    max_decode_steps=16,
)

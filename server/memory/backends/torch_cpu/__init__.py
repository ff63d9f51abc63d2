"""The CPU through torch's operations, in memory that is shared with the whole machine."""

from __future__ import annotations

from server.memory.backends.record import Backend, Defaults

# What a thread with AVX2 computes in some 0.4 s, so that what runs gets a token twice a second.
_THREAD_STEP_FLOPS = 18 * 10**9
CPU_DEFAULTS = Defaults(
    block_size=16,
    max_num_seqs=32,
    max_num_batched_tokens=512,
    thread_step_flops=_THREAD_STEP_FLOPS,
)

TORCH = Backend(
    name="torch",
    device="cpu",
    place="a CPU",
    preference=0,
    found_where="there is no other",
    find="server.memory.backends.torch_cpu.parts:find_cpu",
    parts_at="server.memory.backends.torch_cpu.parts:PARTS",
    device_at="server.execution.cpu_device:CpuDevice",
    open_device="server.execution.cpu_device:open_cpu",
    defaults=CPU_DEFAULTS,
    equal_bits="--dtype float32 guarantees equal tokens",
    auto_dtype="float32 where its weights take at most 1 GiB, or where 16-bit products are slower "
    "on this CPU and it fits, else the checkpoint's",
    weighs_dtype=True,
    unlike_heads=True,
)

"""An NVIDIA GPU through Triton's kernels, with memory of its own."""

from __future__ import annotations

from server.memory.backends.record import Backend, Defaults

TRITON = Backend(
    name="triton",
    device="cuda",
    place="a GPU",
    preference=100,
    found_where="torch can use a GPU",
    find="server.memory.backends.triton_cuda.parts:find_cuda",
    parts_at="server.memory.backends.triton_cuda.parts:PARTS",
    device_at="server.execution.device:open_cuda",
    open_device="server.execution.gpu_memory:open_gpu",
    defaults=Defaults(block_size=64, max_num_seqs=256, max_num_batched_tokens=8192),
    equal_bits="--batch-invariant guarantees equal bits",
    auto_dtype="the checkpoint's if that has 16 bits, else bfloat16",
    quantisations=("int8", "int4", "fp8"),
    suggested_quantisations=("int8", "int4"),
    batch_invariant=True,
    captures_graphs=True,
    compiles_kernels=True,
    own_memory=True,
    max_head_dim=256,
    max_width=16384,
)

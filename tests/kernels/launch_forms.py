"""Launches of every kernel at the shapes that the compile gate compiles, recorded without a GPU.

``python -m tests.kernels.launch_forms`` prints the forms of launches and cases as JSON. It runs in
a process of its own: one in which Triton interprets kernels specialises nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from kernels.attention_types import PLAIN, AttentionFeatures, AttentionMetadata
from kernels.gate_cases import cases_of, launcher_modules
from kernels.gpu import (
    attention,
    block_copy,
    elementwise,
    kv_store,
    linear,
    logprobs,
    norm,
    prefill_attention,
    sampling,
    specialized_prefill,
    step_inputs,
    varlen_attention,
)
from kernels.gpu.compile_case import CompileCase
from kernels.gpu_sampling_workspace import MERGE_TOP
from kernels.linears import pack_on_any_device
from kernels.offline import source_of
from kernels.offline_launch import form_of, recording_launches
from kernels.row_state import RowLayout, StepTable
from kernels.sampling_types import SamplingTensors, SparseBias, SparseIds
from kernels.step_types import StepBuffers
from kernels.tuning import trying
from kernels.workspace import AttentionShape, attention_workspace_bytes

META = torch.device("meta")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
FLOAT8 = torch.float8_e4m3fn
I32, I64 = torch.int32, torch.int64
VOCAB = 131072
Launch = Callable[[int], object]  # of an architecture


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


# --- what surrounds attention ---------------------------------------------------------------------


def norms() -> Iterator[Launch]:
    for width in (512, 1024, 5120, 8192, 16384):
        x, weight = empty(5, width), empty(width)
        yield lambda _, x=x, w=weight: norm.add_rms_norm(x, x, w, 1e-6)
        yield lambda _, x=x, w=weight: norm.add_rms_norm(x, None, w, 1e-6)
        yield lambda _, x=x, w=weight: norm.add_layer_norm(x, x, w, w, 1e-6)
        if width != 5120:
            x, weight = empty(5, width, dtype=F32), empty(width, dtype=F32)
            yield lambda _, x=x, w=weight: norm.add_layer_norm(x, x, w, w, 1e-6)


def elementwises() -> Iterator[Launch]:
    for rows, kind in product((1, 1600), ("silu", "gelu_tanh", "gelu_erf", "relu")):
        for dtype in (BF16, F32) if kind == "silu" else (BF16,):
            x = empty(rows, 11008, dtype=dtype)
            yield lambda _, x=x, k=kind: elementwise.activation(x, k)
            x = empty(rows, 2 * 11008, dtype=dtype)
            yield lambda _, x=x, k=kind: elementwise.gated_activation(x, k)
    for dtype in (BF16, F32):
        ids, table = empty(3, dtype=I64), empty(100, 4096, dtype=dtype)
        yield lambda _, i=ids, t=table: elementwise.embedding(i, t, None, None)
        yield lambda _, i=ids, t=table: elementwise.embedding(i, t, i, t)


def stores() -> Iterator[Launch]:
    for head_dim in (64, 128, 256):
        yield partial(store, head_dim)
        yield partial(store, head_dim, norm=True)
        yield partial(store, head_dim, norm=True, cache=torch.int8)
        yield partial(store, head_dim, cache=FLOAT8)
        yield partial(store, head_dim, turned=head_dim // 2, interleaved=True)
        yield partial(store, head_dim, turned=0)
    yield partial(store, 128, dtype=F32, norm=True)


def store(
    head_dim: int,
    arch: int,
    *,
    dtype: torch.dtype = BF16,
    norm: bool = False,
    cache: torch.dtype | None = None,
    turned: int | None = None,
    interleaved: bool = False,
) -> None:
    qkv = empty(5, 48, head_dim, dtype=dtype)
    turned = head_dim if turned is None else turned
    weight = empty(head_dim, dtype=dtype)
    kv_store.rotary_store_kv(
        qkv[:, :32],
        qkv[:, 32:40],
        qkv[:, 40:],
        empty(9, 2, 8, 64, head_dim, dtype=cache or dtype),
        empty(5, dtype=I64),
        empty(5, dtype=I64) if turned else None,
        empty(100, turned, dtype=F32) if turned else None,
        interleaved,
        (weight, weight, 1e-6) if norm else None,
        empty(9, 2, 8, 64, dtype=F32) if cache else None,
    )


def copies() -> Iterator[Launch]:
    cache = empty(3, 40, 2, 8, 64, 128)
    for pairs in (1, 2, 8, 64, 256, 1024):
        ids = empty(pairs, dtype=I64)
        yield lambda _, i=ids: block_copy.copy_blocks(cache, i, i)
    ids, staged = empty(5, dtype=I64), empty(3, 5, 2, 8, 64, 128)
    yield lambda _: block_copy.gather_blocks(cache, ids, staged)
    yield lambda _: block_copy.scatter_blocks(cache, ids, staged)


def steps() -> Iterator[Launch]:
    layout, table = RowLayout(max_blocks=33, max_tokens=2000), StepTable(max_num_seqs=7)
    rows, packet = empty(7, layout.words, dtype=I32), empty(500, dtype=I32)
    counts, marks = empty(7, 50257, dtype=I32), empty(7, 50257, dtype=torch.bool)
    results, tokens = empty(7, dtype=I32), empty(7, dtype=I64)
    buffers = StepBuffers(
        *(empty(99, dtype=I64) for _ in range(3)),
        *(empty(8, dtype=I32) for _ in range(2)),
        empty(7, 33, dtype=I32),
        empty(6, 7, dtype=F32),
        *(empty(7, dtype=I64) for _ in range(3)),
    )
    yield lambda _: step_inputs.write_rows(rows, packet, 100, 2)
    for page in step_inputs.PAGES:
        yield lambda _, p=page: step_inputs.gather_step(rows, packet, buffers, layout, table, 3, p)
    yield lambda _: step_inputs.count_tokens(rows, packet, counts, marks, layout, 64, 2)
    yield lambda _: step_inputs.commit_tokens(
        rows, packet, tokens, tokens.bool(), counts, results, layout, table, 3
    )


# --- the matrix product ---------------------------------------------------------------------------


def products() -> Iterator[Launch]:
    for out, width in ((1024, 4096), (4096, 4096), (28672, 4096)):
        for format in ("bf16", "int8", "int4", *(["fp8"] if out == 4096 else [])):
            few = (1, 5, 9, 17)
            many = (64, 512) if format in ("int8", "int4") else ()
            for rows in (*few, *many):
                yield partial(multiply, rows, out, width, format)
            yield partial(multiply, 1, out, width, format, invariant=True)
    yield partial(multiply, 2, 4096, 4096, "bf16", extras=True)
    yield partial(multiply, 1, 4096, 4096, "f32", dtype=F32)
    yield partial(multiply, 5, 4096, 2880, "bf16", extras=True)
    yield partial(multiply, 20, 4096, 4096, "f32", dtype=F32)
    yield partial(multiply, 5, 4096, 4000, "bf16", extras=True, invariant=True)
    yield partial(multiply, 5, 4096, 4096, "f32", dtype=F32, invariant=True)
    yield partial(multiply, 512, 4096, 4096, "fp8")
    for format in ("int8", "int4", "fp8"):
        yield partial(multiply, 5, 4096, 4096, format, dtype=F16)
        yield partial(multiply, 2048, 4096, 4096, format)
    yield partial(multiply, 2048, 4096, 4096, "int8", extras=True)


def multiply(
    rows: int,
    out: int,
    width: int,
    format: str,
    arch: int,
    *,
    dtype: torch.dtype = BF16,
    extras: bool = False,
    invariant: bool = False,
) -> None:
    bias = empty(out, dtype=dtype) if extras else None
    weight = pack_on_any_device(
        empty(out, width, dtype=dtype), format, bias, batch_invariant=invariant
    )
    residual = empty(rows, out, dtype=dtype) if extras else None
    activation = "gelu_erf" if extras else None
    linear.linear(empty(rows, width, dtype=dtype), weight, activation, residual)


# --- choosing tokens ------------------------------------------------------------------------------


def samples() -> Iterator[Launch]:
    for draws, changes, truncates in product((False, True), repeat=3):
        if draws or not truncates:
            yield partial(choose, draws, changes, truncates)
    logits, ids = empty(5, VOCAB, dtype=F32), empty(5, dtype=I64)
    for num_top in (5, 20, MERGE_TOP + 1):
        yield lambda _, n=num_top: logprobs.token_logprobs(logits, ids, n)


def choose(draws: bool, changes: bool, truncates: bool, arch: int) -> None:
    floats, integers = empty(5, dtype=F32), empty(5, dtype=I64)
    params = SamplingTensors(temperature=floats)
    if draws:
        params = replace(params, key=integers, position=integers)
    if truncates:
        params = replace(params, top_k=integers, top_p=floats, min_p=floats)
    if changes:
        params = replace(
            params,
            presence=floats,
            frequency=floats,
            repetition=floats,
            output_counts=empty(5, VOCAB, dtype=I32),
            prompt_mask=empty(5, VOCAB, dtype=torch.bool),
            bias=SparseBias(integers, integers, floats),
            forbidden=SparseIds(integers, integers),
            bitmask=empty(5, VOCAB // 32, dtype=I32),
        )
    sampling.sample(empty(5, VOCAB, dtype=F32), params)


# --- attention ------------------------------------------------------------------------------------


def attentions() -> Iterator[Launch]:
    """Decode with what builds its work, by the names in kernels.gpu.paged_decode; then prefill."""
    yield from (
        partial(attend, head_dim, heads, 1, **options)
        for head_dim, heads, options in (
            (64, (32, 8), {}),
            (80, (32, 32), {}),
            (112, (32, 8), {}),
            (128, (32, 8), {}),
            (256, (16, 8), {}),
            (128, (32, 8), {"block_size": 16}),
            (128, (32, 2), {}),
            (64, (71, 1), {}),
            (256, (16, 8), {"window": 100, "soft_cap": 5.0}),
            (64, (64, 8), {"window": 100, "sinks": True}),
            (128, (32, 32), {"alibi": True}),
            (128, (32, 8), {"cache": FLOAT8}),
            (64, (32, 8), {"cache": FLOAT8}),
            (256, (16, 8), {"cache": FLOAT8}),
            (128, (32, 8), {"cache": torch.int8}),
            (128, (32, 8), {"dtype": F16}),
            (128, (32, 8), {"dtype": F16, "cache": FLOAT8}),
            (128, (32, 8), {"dtype": F32}),
            (256, (16, 8), {"dtype": F32}),
            (64, (32, 8), {"dtype": F32}),
            (64, (32, 8), {"dtype": F32, "cache": torch.int8}),
        )
    )
    everything = {"window": 100, "soft_cap": 5.0, "alibi": True, "sinks": True}
    for head_dim, block_size, featured in (
        (64, 64, False),
        (64, 16, True),
        (80, 64, True),
        (128, 64, False),
        (128, 64, True),
        (128, 16, True),
        (256, 64, False),
        (256, 16, True),
    ):
        features = everything if featured else {}
        yield partial(attend, head_dim, (32, 8), 4096, block_size=block_size, **features)
    yield partial(attend, 128, (32, 8), 4096, dtype=F16)
    yield partial(attend, 128, (56, 8), 4096, **everything)
    yield partial(attend, 128, (32, 8), 8, **everything)
    for head_dim in (64, 128, 256):
        yield partial(attend, head_dim, (32, 8), 4096, invariant=True, **everything)
    for dtype, cache, head_dim, block_size in (
        (BF16, FLOAT8, 64, 64),
        (BF16, FLOAT8, 128, 64),
        (F16, FLOAT8, 128, 64),
        (BF16, torch.int8, 64, 64),
        (BF16, torch.int8, 128, 16),
        (BF16, torch.int8, 128, 64),
        (BF16, torch.int8, 256, 64),
    ):
        options = {"dtype": dtype, "cache": cache, "block_size": block_size}
        yield partial(attend, head_dim, (32, 8), 4096, **options, **everything)
    yield partial(attend, 128, (32, 8), 4096, dtype=F32, **everything)


def attend(
    head_dim: int,
    heads: tuple[int, int],
    queries: int,
    arch: int,
    *,
    block_size: int = 64,
    dtype: torch.dtype = BF16,
    cache: torch.dtype | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    alibi: bool = False,
    sinks: bool = False,
    invariant: bool = False,
) -> None:
    """A step of three rows that decode, or of one of ``queries`` tokens."""
    rows, tokens = (3, 3) if queries == 1 else (1, queries)
    shape = AttentionShape(
        heads[0],
        heads[1],
        head_dim,
        block_size,
        dtype.itemsize,
        max_num_seqs=17,
        max_num_batched_tokens=8192,
        max_model_len=8192,
        on_gpu=True,
        batch_invariant=invariant,
        windows=(window,),
    )
    metadata = step_of(rows, tokens, queries)
    numbers = empty(heads[0], dtype=F32)
    features = AttentionFeatures(
        window, soft_cap, numbers if alibi else None, numbers if sinks else None
    )
    q = empty(tokens, heads[0], head_dim, dtype=dtype)
    layer = empty(9, 2, heads[1], block_size, head_dim, dtype=cache or dtype)
    scales = empty(9, 2, heads[1], block_size, dtype=F32) if cache else None
    if queries == 1:
        buffer = empty(attention_workspace_bytes(shape), dtype=torch.uint8)
        metadata = replace(metadata, work=attention.prepare(metadata, shape, buffer))
        attention.paged(q, layer, metadata, 0.1, None, features, scales)
    else:
        prefill_attention.paged_prefill(
            q, layer, metadata, shape, 0.1, features, scales, torch.empty_like(q)
        )


def step_of(rows: int, tokens: int, queries: int) -> AttentionMetadata:
    return AttentionMetadata(
        query_start_loc=empty(rows + 1, dtype=I32),
        seq_lens=empty(rows, dtype=I32),
        block_tables=empty(rows, 70, dtype=I32),
        slot_mapping=empty(tokens, dtype=I64),
        positions=empty(tokens, dtype=I64),
        max_query_len=queries,
        max_seq_len=4096,
        work=None,
    )


def specialized() -> Iterator[Launch]:
    for dtype, head_dim, featured in (
        (BF16, 128, False),
        (F16, 128, True),
        (BF16, 64, True),
    ):
        yield partial(attend_specialized, dtype, head_dim, featured)


def attend_specialized(dtype: torch.dtype, head_dim: int, featured: bool, arch: int) -> None:
    if arch == specialized_prefill.ARCH:
        q = empty(4096, 32, head_dim, dtype=dtype)
        specialized_prefill.run(
            q,
            empty(9, 2, 8, 64, head_dim, dtype=dtype),
            step_of(1, 4096, 4096),
            0.1,
            AttentionFeatures(window=100, soft_cap=5.0) if featured else PLAIN,
            torch.empty_like(q),
            specialized_prefill._tuned(arch, head_dim, 4096),
        )


def without_a_cache() -> Iterator[Launch]:
    for head_dim, featured in product((64, 128, 256), (False, True)):
        yield partial(attend_without_a_cache, BF16, head_dim, featured, featured)
    yield partial(attend_without_a_cache, F16, 64, False, False)
    yield partial(attend_without_a_cache, F32, 128, True, False)


def attend_without_a_cache(
    dtype: torch.dtype, head_dim: int, featured: bool, causal: bool, arch: int
) -> None:
    numbers = empty(8, dtype=F32)
    features = AttentionFeatures(100, 5.0, numbers, numbers) if featured else PLAIN
    qkv = empty(50, 24, head_dim, dtype=dtype)
    varlen_attention.varlen(
        qkv[:, :8], qkv[:, 8:16], qkv[:, 16:], empty(3, dtype=I32), 40, causal, 0.1, features
    )


ALL = (
    norms,
    elementwises,
    stores,
    copies,
    steps,
    products,
    samples,
    attentions,
    specialized,
    without_a_cache,
)


def specialised_integers(case: CompileCase) -> list[str]:
    return [
        parameter.name
        for parameter in case.fn.params
        if case.signature.get(parameter.name, "").startswith("i")
        and not parameter.do_not_specialize
    ]


def main(archs: list[int]) -> None:
    """Prints arch -> {"launched": [form], "cases": {name: form}, "specialised": {kernel: names}}:
    the last are integers whose value Triton would look at before it compiles."""
    found = {}
    for arch in archs:
        with trying((), arch), recording_launches(arch) as forms:
            for family in ALL:
                for launch in family():
                    launch(arch)
        cases = [case for module in launcher_modules() for case in cases_of(module, arch).values()]
        found[arch] = {
            "launched": [asdict(form) for form in forms],
            "cases": {
                case.name: asdict(form_of(source_of(case), case.num_warps, case.num_stages))
                for case in cases
            },
            "specialised": {case.fn.fn.__name__: specialised_integers(case) for case in cases},
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main([int(arch) for arch in sys.argv[1:]])

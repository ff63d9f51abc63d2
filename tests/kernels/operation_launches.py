"""Launches of every kernel but attention's, at the shapes that the compile gate compiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch

from kernels.elementwise import KINDS
from kernels.footprint.gpu_sampling import MERGE_TOP
from kernels.footprint.row_state import RowLayout, StepTable
from kernels.gpu import (
    block_copy,
    elementwise,
    kv_store,
    linear,
    logprobs,
    norm,
    sampling,
    step_inputs,
)
from kernels.linears import pack_on_any_device
from kernels.types import HeadNorms, SamplingTensors, SparseBias, SparseIds, StepBuffers
from tests.kernels.meta_tensors import BF16, F16, F32, FLOAT8, I32, I64, Launch, empty

VOCAB = 131072


# --- what surrounds attention ---------------------------------------------------------------------


def norms() -> Iterator[Launch]:
    for width in (512, 1024, 5120, 8192, 16384):
        x, weight = empty(5, width), empty(width)
        yield lambda _, x=x, w=weight: norm.add_rms_norm(x, x, w, 1e-6, 0.0)
        yield lambda _, x=x, w=weight: norm.add_rms_norm(x, None, w, 1e-6, 0.0)
        yield lambda _, x=x, w=weight: norm.add_layer_norm(x, x, w, w, 1e-6, 0.0, 1)
        if width in (1024, 5120):
            yield lambda _, x=x, w=weight: norm.add_rms_norm(x, x, w, 1e-6, 1.0)
            yield lambda _, x=x, w=weight: norm.add_layer_norm(x, x, w, None, 1e-6, 0.0, 1)
            yield lambda _, x=x, w=weight: norm.add_layer_norm(x, x, w, w, 1e-6, 1.0, 1)
            yield lambda _, x=x: norm.add_layer_norm(x, x, None, None, 1e-6, 0.0, 1)
        if width != 5120:
            x, weight = empty(5, width, dtype=F32), empty(width, dtype=F32)
            yield lambda _, x=x, w=weight: norm.add_layer_norm(x, x, w, w, 1e-6, 0.0, 1)
    x = empty(5, 32 * 128)
    for shape in ((128,), (32, 128)):
        w = empty(*shape)
        yield lambda _, x=x, w=w: norm.add_layer_norm(x, None, w, w, 1e-6, 0.0, 32)


def elementwises() -> Iterator[Launch]:
    for rows, kind in product((1, 1600), KINDS):
        for dtype in (BF16, F32) if kind == "silu" else (BF16,):
            x = empty(rows, 11008, dtype=dtype)
            yield lambda _, x=x, k=kind: elementwise.activation(x, k)
            x = empty(rows, 2 * 11008, dtype=dtype)
            yield lambda _, x=x, k=kind: elementwise.gated_activation(x, k)
    for rows, dtype in product((1, 1600), (BF16, F32)):
        x, number = empty(rows, 11008, dtype=dtype), empty(1, dtype=dtype)
        yield lambda _, x=x, n=number: elementwise.xielu(x, n, n, n, n)
    for dtype in (BF16, F32):
        ids, table = empty(3, dtype=I64), empty(100, 4096, dtype=dtype)
        yield lambda _, i=ids, t=table: elementwise.embedding(i, t, None, None)
        yield lambda _, i=ids, t=table: elementwise.embedding(i, t, i, t)


def stores() -> Iterator[Launch]:
    for head_dim in (64, 128, 256):
        yield partial(store, head_dim)
        yield partial(store, head_dim, norm=True)
        yield partial(store, head_dim, norm=True, offset=1.0)
        yield partial(store, head_dim, norm=True, norm_last=True)
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
    offset: float = 0.0,
    norm_last: bool = False,
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
        HeadNorms(weight, weight, 1e-6, offset, norm_last) if norm else None,
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


OPERATIONS = (norms, elementwises, stores, copies, steps, products, samples)

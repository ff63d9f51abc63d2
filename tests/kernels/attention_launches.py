"""Launches of every kernel of attention, at the shapes that the compile gate compiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch

from kernels.backends import TRITON_CUDA, attention_workspace_bytes
from kernels.footprint.attention import AttentionShape
from kernels.gpu import attention, prefill_attention, specialized_prefill, varlen_attention
from kernels.types import PLAIN, AttentionFeatures, AttentionMetadata
from tests.kernels.meta_tensors import BF16, F16, F32, FLOAT8, I32, I64, Launch, empty


def decodes() -> Iterator[Launch]:
    """With what builds its work, by the names in kernels.gpu.paged_decode."""
    cases: tuple[tuple[int, tuple[int, int], dict[str, Any]], ...] = (
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
    for head_dim, heads, options in cases:
        yield partial(attend, head_dim, heads, 1, **options)


EVERYTHING: dict[str, Any] = {"window": 100, "soft_cap": 5.0, "alibi": True, "sinks": True}


def prefills() -> Iterator[Launch]:
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
        features = EVERYTHING if featured else {}
        yield partial(attend, head_dim, (32, 8), 4096, block_size=block_size, **features)
    yield partial(attend, 128, (32, 8), 4096, dtype=F16)
    yield partial(attend, 128, (56, 8), 4096, **EVERYTHING)
    yield partial(attend, 128, (32, 8), 8, **EVERYTHING)
    for head_dim in (64, 128, 256):
        yield partial(attend, head_dim, (32, 8), 4096, invariant=True, **EVERYTHING)
    yield partial(attend, 128, (32, 8), 4096, dtype=F32, **EVERYTHING)


def prefills_of_smaller_caches() -> Iterator[Launch]:
    for dtype, cache, head_dim, block_size in (
        (BF16, FLOAT8, 64, 64),
        (BF16, FLOAT8, 128, 64),
        (F16, FLOAT8, 128, 64),
        (BF16, torch.int8, 64, 64),
        (BF16, torch.int8, 128, 16),
        (BF16, torch.int8, 128, 64),
        (BF16, torch.int8, 256, 64),
    ):
        options: dict[str, Any] = {"dtype": dtype, "cache": cache, "block_size": block_size}
        yield partial(attend, head_dim, (32, 8), 4096, **options, **EVERYTHING)


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
        buffer = empty(attention_workspace_bytes(shape, TRITON_CUDA), dtype=torch.uint8)
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


ATTENTION = (decodes, prefills, prefills_of_smaller_caches, specialized, without_a_cache)

"""Steps over a paged cache to be timed: random caches, permuted pages, and who attends to them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.backends import TRITON_CUDA, attention_workspace_bytes
from kernels.bench.row import Call
from kernels.footprint import ceil_div
from kernels.footprint.attention import AttentionShape
from kernels.types import PLAIN, AttentionMetadata

DTYPE = torch.bfloat16
SEED = 20
FLASHINFER_SCRATCH = 256 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """Rows of ``queries`` tokens each, over contexts that end with them."""

    contexts: tuple[int, ...]  # tokens, this step's included
    queries: int = 1
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 64
    quantised: bool = False  # the cache is float8_e4m3fn, with a scale for each slot and head

    @property
    def cache_bytes(self) -> int:
        """Of keys and values that attention must read."""
        slot = self.head_dim * (1 if self.quantised else 2) + (4 if self.quantised else 0)
        return 2 * sum(self.contexts) * self.kv_heads * slot

    @property
    def nbytes(self) -> int:
        """The cache once, queries and outputs."""
        tokens = len(self.contexts) * self.queries
        return self.cache_bytes + 2 * tokens * self.heads * self.head_dim * 2

    @property
    def operations(self) -> int:
        """Of q.k and of weights times values, for the pairs that the causal mask leaves."""
        hidden = self.queries * (self.queries - 1) // 2
        pairs = sum(context * self.queries - hidden for context in self.contexts)
        return 4 * pairs * self.heads * self.head_dim


def log_uniform(rows: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Contexts of a ragged batch, the same ones every time."""
    draw = random.Random(SEED)
    low, high = math.log(shortest), math.log(longest)
    return tuple(round(math.exp(draw.uniform(low, high))) for _ in range(rows))


@dataclass(frozen=True, slots=True)
class Tensors:
    """A step's inputs; ``pages`` [B, most] are drawn from the whole cache in random order."""

    q: Tensor  # [T, Hq, hd]
    cache: Tensor  # [num_blocks, 2, Hkv, block_size, hd]
    scales: Tensor | None
    pages: Tensor
    contexts: Tensor  # [B] int32
    starts: Tensor  # [B + 1] int32


def tensors(step: Step, device: torch.device) -> Tensors:
    counts = [ceil_div(context, step.block_size) for context in step.contexts]
    order = torch.randperm(sum(counts), dtype=torch.int32)
    pages = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for row, part in enumerate(torch.split(order, counts)):
        pages[row, : len(part)] = part
    size = (sum(counts), 2, step.kv_heads, step.block_size, step.head_dim)
    cache = torch.randn(size, dtype=DTYPE, device=device)
    scales = None
    if step.quantised:
        cache = cache.to(torch.float8_e4m3fn)
        scales = torch.rand(size[:4], dtype=torch.float32, device=device)
    tokens = len(counts) * step.queries
    return Tensors(
        q=torch.randn(tokens, step.heads, step.head_dim, dtype=DTYPE, device=device),
        cache=cache,
        scales=scales,
        pages=pages.to(device),
        contexts=torch.tensor(step.contexts, dtype=torch.int32, device=device),
        starts=torch.arange(0, tokens + 1, step.queries, dtype=torch.int32, device=device),
    )


def own(step: Step, batch_invariant: bool, device: torch.device, sets: int) -> list[Call]:
    """The project's kernels, the step's work list made before: it serves every layer."""
    return [_own(step, batch_invariant, device) for _ in range(sets)]


def _own(step: Step, batch_invariant: bool, device: torch.device) -> Call:
    given = tensors(step, device)
    rows, tokens = len(step.contexts), given.q.shape[0]
    shape = AttentionShape(
        num_query_heads=step.heads,
        num_kv_heads=step.kv_heads,
        head_dim=step.head_dim,
        block_size=step.block_size,
        element_bytes=2,
        max_num_seqs=rows,
        max_num_batched_tokens=tokens,
        max_model_len=max(step.contexts),
        batch_invariant=batch_invariant,
    )
    size = attention_workspace_bytes(shape, TRITON_CUDA)
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    metadata = AttentionMetadata(
        query_start_loc=given.starts,
        seq_lens=given.contexts,
        block_tables=given.pages,
        slot_mapping=torch.zeros(tokens, dtype=torch.int64, device=device),
        positions=torch.zeros(tokens, dtype=torch.int64, device=device),
        max_query_len=step.queries,
        max_seq_len=max(step.contexts),
        work=None,
    )
    prepare = cast(
        Callable[..., AttentionMetadata], TRITON_CUDA.implementation("prepare_attention")
    )
    paged = cast(Callable[..., Tensor], TRITON_CUDA.implementation("paged_attention"))
    metadata = prepare(metadata, shape, buffer)
    return partial(
        paged, given.q, given.cache, metadata, step.head_dim**-0.5, buffer, PLAIN, given.scales
    )


def torch_dense(step: Step, device: torch.device, sets: int) -> list[Call]:
    """torch's attention over keys and values that lie side by side: no pages, equal contexts."""
    if len(set(step.contexts)) > 1 or step.quantised:
        raise NotImplementedError("torch's attention is for equal contexts of unquantised keys")
    return [_dense(step, device) for _ in range(sets)]


def _dense(step: Step, device: torch.device) -> Call:
    rows, context = len(step.contexts), step.contexts[0]
    q = torch.randn(rows, step.heads, step.queries, step.head_dim, dtype=DTYPE, device=device)
    k, v = (
        torch.randn(rows, step.kv_heads, context, step.head_dim, dtype=DTYPE, device=device)
        for _ in range(2)
    )
    attend = partial(scaled_dot_product_attention, q, k, v, enable_gqa=step.heads != step.kv_heads)
    if step.queries == 1:
        return attend
    if step.queries == context:
        return partial(attend, is_causal=True)
    # Imported here: it brings torch's compiler along, which takes seconds and no other row needs.
    from torch.nn.attention.bias import causal_lower_right

    return partial(attend, attn_mask=causal_lower_right(step.queries, context))


def flashinfer(step: Step, device: torch.device, sets: int) -> list[Call]:
    """FlashInfer over the same pages: its page layout "HND" is the cache's."""
    if step.quantised:
        raise NotImplementedError("flashinfer has no scale for each slot")
    package = flashinfer_package("flashinfer")
    return [_flashinfer(package, step, device) for _ in range(sets)]


def flashinfer_package(name: str) -> Any:
    """The module, or NotImplementedError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise NotImplementedError(f"{name} cannot be imported") from error


def _flashinfer(package: Any, step: Step, device: torch.device) -> Call:
    given = tensors(step, device)
    counts = [ceil_div(context, step.block_size) for context in step.contexts]
    indices = torch.cat([given.pages[row, :count] for row, count in enumerate(counts)])
    bounds = [sum(counts[:row]) for row in range(len(counts) + 1)]
    last = [
        context - (count - 1) * step.block_size
        for context, count in zip(step.contexts, counts, strict=True)
    ]
    on_device = partial(torch.tensor, dtype=torch.int32, device=device)
    pages = (on_device(bounds), indices, on_device(last))
    heads = (step.heads, step.kv_heads, step.head_dim, step.block_size)
    scratch = torch.empty(FLASHINFER_SCRATCH, dtype=torch.uint8, device=device)
    if step.queries == 1:
        wrapper = package.BatchDecodeWithPagedKVCacheWrapper(scratch, "HND")
        wrapper.plan(*pages, *heads, q_data_type=DTYPE, kv_data_type=DTYPE)
    else:
        wrapper = package.BatchPrefillWithPagedKVCacheWrapper(scratch, "HND")
        plan = partial(wrapper.plan, causal=True, q_data_type=DTYPE, kv_data_type=DTYPE)
        plan(given.starts, *pages, *heads)
    return partial(wrapper.run, given.q, given.cache)

"""The warp-specialised form of paged attention for long prompts, on Hopper.

The table says whether it runs at all (ENABLED): the compiler pass that makes it, Triton's for
sm_90, is young, and a race in it would show as wrong numbers now and then, so it stays off until it
has passed a soak test on a GPU. The compile gate holds its form all the same.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from functools import partial

import torch
import triton
from torch import Tensor

from kernels import tuning
from kernels.footprint.attention import AttentionShape
from kernels.gpu.compile_case import TMA, WARP_SPECIALIZED, WGMMA, CompileCase
from kernels.gpu.interpreter import interpreted
from kernels.jit import paged_prefill_specialized as jit
from kernels.types import AttentionFeatures, AttentionMetadata

ARCH = 90  # what the compiler specialises warps for in this form
HEAD_DIMS = (64, 128)
BLOCK_SIZE = 64
MOST_ROWS = 2 ** int(jit.SEARCH_STEPS)
LARGEST_COORDINATE = 2**31 - 1


def chosen(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    shape: AttentionShape,
    features: AttentionFeatures,
) -> tuning.Tuning | None:
    """The configuration of this form, or None where another must or should run."""
    arch = tuning.architecture(q.device)
    lines = cache_layer.numel() // max(1, cache_layer.shape[4])
    possible = (
        arch == ARCH
        and q.dtype in (torch.bfloat16, torch.float16)
        and cache_layer.dtype is q.dtype
        and cache_layer.shape[3] == BLOCK_SIZE
        and cache_layer.shape[4] in HEAD_DIMS
        and (q.stride(1) == q.shape[2] or q.shape[1] == 1)
        and q.stride(0) * q.element_size() % 16 == 0
        and q.data_ptr() % 16 == 0
        and features.alibi_slopes is None
        and features.sinks is None
        and not shape.batch_invariant
        and metadata.seq_lens.shape[0] <= MOST_ROWS
        and 0 < lines < LARGEST_COORDINATE - BLOCK_SIZE
    )
    if not possible:
        return None
    tuned = _tuned(arch, cache_layer.shape[4], metadata.max_query_len)
    return tuned if tuned.blocks["ENABLED"] else None


def _tuned(arch: int, head_dim: int, max_query_len: int) -> tuning.Tuning:
    return tuning.lookup(
        "paged_prefill_specialized", arch, head_dim=head_dim, max_query_len=max_query_len
    )


def run(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    features: AttentionFeatures,
    out: Tensor,
    tuned: tuning.Tuning,
) -> None:
    """As kernels.gpu.prefill_attention.paged_prefill, for a case that ``chosen`` has chosen.

    The kernel makes its descriptors in scratch that Triton asks an allocator for, 128 bytes each
    and three a program. It comes from torch's own pool for this launch: torch hands it to no one
    who runs before the kernel on this stream, and to a captured graph from the graph's pool. The
    allocator is set in a copy of the context, so that no other launch finds it there.
    """
    num_kv_heads = cache_layer.shape[2]
    rows = metadata.seq_lens.shape[0]
    num_tiles = q.shape[0] // tuned.blocks["BLOCK_Q"] + rows
    launch = partial(
        jit.paged_prefill_specialized[(num_tiles * q.shape[1],)],
        out,
        q,
        cache_layer,
        metadata.block_tables,
        metadata.query_start_loc,
        metadata.seq_lens,
        rows,
        num_tiles,
        q.shape[0],
        cache_layer.shape[0] * 2 * num_kv_heads,
        metadata.block_tables.stride(0),
        q.stride(0),
        float(scale),
        float(features.soft_cap),
        features.window,
        **_sizes(num_kv_heads, q.shape[1] // num_kv_heads, cache_layer.shape[4], tuned),
        HAS_WINDOW=features.window > 0,
        HAS_SOFT_CAP=features.soft_cap > 0,
        INTERPRETED=interpreted(),
        **tuned.launch,
    )
    contextvars.copy_context().run(_with_scratch, launch, q.device)


def _with_scratch(launch: partial[object], device: torch.device) -> None:
    def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=device)

    triton.set_allocator(allocate)
    launch()


def _sizes(num_kv_heads: int, group: int, head_dim: int, tuned: tuning.Tuning) -> dict[str, int]:
    return {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": BLOCK_SIZE,
        "BLOCK_Q": tuned.blocks["BLOCK_Q"],
        "STAGES": tuned.num_stages,
    }


def compile_cases(arch: int) -> Iterator[CompileCase]:
    """Whether or not it is switched on; nothing where the compiler does not specialise."""
    if arch != ARCH:
        return
    yield _case(arch, "bf16", 128, False)
    yield _case(arch, "fp16", 128, True)
    yield _case(arch, "bf16", 64, True)


def _case(arch: int, dtype: str, head_dim: int, featured: bool) -> CompileCase:
    tuned = _tuned(arch, head_dim, 4096)
    tensors = dict.fromkeys(("out", "q", "cache"), f"*{dtype}")
    tensors |= dict.fromkeys(("block_tables", "query_start_loc", "seq_lens"), "*i32")
    counts = ("num_rows", "num_tiles", "num_tokens", "num_planes", "table_stride", "window")
    return CompileCase(
        name=f"paged_prefill_specialized/{dtype}-hd{head_dim}" + "-featured" * featured,
        fn=jit.paged_prefill_specialized,
        signature=tensors
        | dict.fromkeys((*counts, "q_token_stride"), "i32")
        | {"scale": "fp32", "soft_cap": "fp32"},
        constexprs=_sizes(8, 4, head_dim, tuned)
        | {"HAS_WINDOW": featured, "HAS_SOFT_CAP": featured, "INTERPRETED": False},
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        wants=frozenset({WGMMA, TMA, WARP_SPECIALIZED}),
        aligned=frozenset([*tensors, "q_token_stride"]),
    )

"""Attention without a cache on a GPU, for encoders and whatever else is computed in one go."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from kernels import tuning
from kernels.gpu.compile_case import ASYNC_COPY, WGMMA, CompileCase
from kernels.gpu.interpreter import interpreted
from kernels.gpu.prefill_attention import tile_of
from kernels.jit import varlen_attention as jit
from kernels.types import PLAIN, AttentionFeatures


def varlen_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_query_len: int | None,
    causal: bool,
    scale: float,
    features: AttentionFeatures = PLAIN,
) -> Tensor:
    """As kernels.varlen_attention. Raises ValueError without ``max_query_len``."""
    if max_query_len is None:
        raise ValueError(
            "max_query_len is missing; on a GPU it must be given, for nothing is read back"
        )
    return varlen(q, k, v, cu_seqlens, max_query_len, causal, scale, features)


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_query_len: int,
    causal: bool,
    scale: float,
    features: AttentionFeatures = PLAIN,
) -> Tensor:
    """As kernels.varlen_attention. ``max_query_len`` changes nothing: tiles are found on the
    device, and one configuration for any length keeps a sequence's bits from depending on others.

    FlashAttention's tiling (Dao et al. 2022). Raises ValueError for a scale that is not positive
    or channels that are not adjacent.
    """
    if scale <= 0:
        raise ValueError(f"scale is {scale}; attention on a GPU needs a positive one")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.stride(2) != 1:
            raise ValueError(f"{name} has strides {list(tensor.stride())}; the last must be 1")
    tokens, num_query_heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    rows = cu_seqlens.shape[0] - 1
    if tokens == 0 or rows == 0:
        return out
    group = num_query_heads // k.shape[1]
    tuned = _tuned(tuning.architecture(q.device), head_dim, q.element_size())
    tokens_of_tile, parts = tile_of(tuned.blocks["BLOCK_M"], group)
    num_tiles = tokens // tokens_of_tile + rows
    jit.varlen_attention[(num_tiles * k.shape[1] * parts,)](
        out,
        q,
        k,
        v,
        cu_seqlens,
        features.alibi_slopes,
        features.sinks,
        rows,
        num_tiles,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        float(scale),
        float(features.soft_cap),
        features.window,
        **_sizes(k.shape[1], group, head_dim, tuned),
        CAUSAL=causal,
        HAS_WINDOW=features.window > 0,
        HAS_SOFT_CAP=features.soft_cap > 0,
        INTERPRETED=interpreted(),
        **tuned.launch,
    )
    return out


def _head_pad(head_dim: int) -> int:
    return max(16, int(triton.next_power_of_2(head_dim)))


def _tuned(arch: int, head_dim: int, q_bytes: int) -> tuning.Tuning:
    head_pad = _head_pad(head_dim)
    return tuning.lookup("varlen_attention", arch, head_pad=head_pad, q_bytes=q_bytes)


def _sizes(num_kv_heads: int, group: int, head_dim: int, tuned: tuning.Tuning) -> dict[str, int]:
    return {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "HEAD_PAD": _head_pad(head_dim),
        "BLOCK_M": tuned.blocks["BLOCK_M"],
        "BLOCK_N": tuned.blocks["BLOCK_N"],
    }


def compile_cases(arch: int) -> Iterator[CompileCase]:
    """Every row of the table, plain and with all features."""
    for head_dim in (64, 128, 256):
        for featured in (False, True):
            yield _case(arch, "bf16", head_dim, 1, featured, causal=featured)
    yield _case(arch, "fp16", 64, 1, False, causal=False)
    yield _case(arch, "fp32", 128, 1, True, causal=False)


def _case(
    arch: int, dtype: str, head_dim: int, group: int, featured: bool, causal: bool
) -> CompileCase:
    wide = dtype == "fp32"
    tuned = _tuned(arch, head_dim, 4 if wide else 2)
    tensors = dict.fromkeys(("out", "q", "k", "v"), f"*{dtype}") | {"cu_seqlens": "*i32"}
    optional = ("alibi_slopes", "sinks")
    tensors |= dict.fromkeys(optional, "*fp32") if featured else {}
    strides = [f"{name}_{axis}_stride" for name in "qkv" for axis in ("token", "head")]
    integers = ("num_rows", "num_tiles", "window", *strides)
    name = f"varlen_attention/{dtype}-hd{head_dim}" + "-featured" * featured + "-causal" * causal
    return CompileCase(
        name=name,
        fn=jit.varlen_attention,
        signature=tensors | dict.fromkeys(integers, "i32") | {"scale": "fp32", "soft_cap": "fp32"},
        constexprs=dict.fromkeys(() if featured else optional)
        | _sizes(8, group, head_dim, tuned)
        | {
            "CAUSAL": causal,
            "HAS_WINDOW": featured,
            "HAS_SOFT_CAP": featured,
            "INTERPRETED": False,
        },
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        wants=frozenset() if wide else frozenset({WGMMA, ASYNC_COPY}),
        aligned=frozenset([*tensors, *strides]),
    )

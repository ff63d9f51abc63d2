"""Launches decode attention over the paged cache, and says how it is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import tuning
from kernels.gpu.compile_case import ASYNC_COPY, CompileCase
from kernels.gpu.decode_work import AttentionWork, work_blocks
from kernels.gpu.interpreter import interpreted
from kernels.jit.paged_decode import paged_decode
from kernels.types import AttentionFeatures, AttentionMetadata

NATIVE_FLOAT8 = 89  # the first architecture whose instructions know float8_e4m3fn
LEAST_ROWS = 16  # of a tensor-core product; a smaller group is padded
JOINED_NUMBERS = 2048  # that a program brings at once while it joins the parts of a pair
TRITON_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def decode(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    work: AttentionWork,
    scale: float,
    features: AttentionFeatures,
    kv_scales: Tensor | None,
    out: Tensor,
) -> None:
    """Writes the rows of one query token to ``out`` [T, Hq, hd], contiguous; no others."""
    shape = work.shape
    arch = tuning.architecture(q.device)
    cache = cache_layer
    if cache.dtype is torch.float8_e4m3fn and arch < NATIVE_FLOAT8:
        cache = cache.view(torch.uint8)
    tuned = tuning.lookup(
        "paged_decode",
        arch,
        head_dim=shape.head_dim,
        group=shape.group,
        block_size=shape.block_size,
        query_bytes=q.element_size(),
        cache_bytes=cache.element_size(),
    )
    todo = work.list_for(features.window)
    scratch = work.scratch
    absent = scratch.sums  # a pointer that is never followed
    paged_decode[(work.programs,)](
        q,
        cache,
        absent if kv_scales is None else kv_scales,
        metadata.block_tables,
        out,
        absent if features.alibi_slopes is None else features.alibi_slopes,
        absent if features.sinks is None else features.sinks,
        todo.header,
        todo.program_starts,
        todo.records,
        scratch.counters,
        scratch.partials,
        scratch.maxima,
        scratch.sums,
        scale,
        features.soft_cap,
        features.window,
        q.stride(0),
        q.stride(1),
        metadata.block_tables.stride(0),
        **_constants(shape.group, shape.num_kv_heads, shape.head_dim, shape.block_size, work.tile),
        HAS_WINDOW=features.window > 0,
        HAS_SOFT_CAP=features.soft_cap > 0,
        HAS_ALIBI=features.alibi_slopes is not None,
        HAS_SINKS=features.sinks is not None,
        QUANTISED=kv_scales is not None,
        PRODUCT_TYPE=_product_type(q.dtype, kv_scales is not None),
        INTERPRETED=interpreted(),
        **tuned.launch,
    )


def _product_type(dtype: torch.dtype, quantised: bool) -> tl.dtype:
    """float16 for quantised numbers, for it is one instruction from them; see in_units."""
    return tl.float16 if quantised and dtype is not torch.float32 else TRITON_TYPES[dtype]


def _constants(
    group: int, num_kv_heads: int, head_dim: int, block_size: int, tile: int
) -> dict[str, int]:
    group_pad, head_pad = triton.next_power_of_2(group), triton.next_power_of_2(head_dim)
    return {
        "GROUP": group,
        "GROUP_ROWS": max(LEAST_ROWS, group_pad),
        "GROUP_PAD": group_pad,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "HEAD_PAD": head_pad,
        "BLOCK_SIZE": block_size,
        "TILE": tile,
        "PARTS": max(1, min(16, JOINED_NUMBERS // (group_pad * head_pad))),
    }


@dataclass(frozen=True, slots=True)
class _Gated:
    """A configuration worth gating: what models of today have, and the ends of every range."""

    name: str
    head_dim: int = 128
    group: int = 4
    num_kv_heads: int = 8
    block_size: int = 64
    dtype: str = "bf16"
    cache: str = ""  # the quantised cache's type; none if empty
    features: tuple[str, ...] = ()


_GATED = (
    _Gated("bf16-hd64", head_dim=64),
    _Gated("bf16-hd80", head_dim=80, group=1, num_kv_heads=32),
    _Gated("bf16-hd112", head_dim=112),
    _Gated("bf16-hd128"),
    _Gated("bf16-hd256", head_dim=256, group=2),
    _Gated("bf16-hd128-block16", block_size=16),
    _Gated("bf16-hd128-group16", group=16, num_kv_heads=2),
    _Gated("bf16-hd64-group71", head_dim=64, group=71, num_kv_heads=1),
    _Gated("bf16-hd256-window-cap", head_dim=256, group=2, features=("WINDOW", "SOFT_CAP")),
    _Gated("bf16-hd64-window-sinks", head_dim=64, group=8, features=("WINDOW", "SINKS")),
    _Gated("bf16-hd128-alibi", group=1, num_kv_heads=32, features=("ALIBI",)),
    _Gated("bf16-hd128-float8", cache="fp8e4nv"),
    _Gated("bf16-hd64-float8", head_dim=64, cache="fp8e4nv"),
    _Gated("bf16-hd256-float8", head_dim=256, group=2, cache="fp8e4nv"),
    _Gated("bf16-hd128-int8", cache="i8"),
    _Gated("fp16-hd128", dtype="fp16"),
    _Gated("fp16-hd128-float8", dtype="fp16", cache="fp8e4nv"),
    _Gated("fp32-hd128", dtype="fp32"),
    _Gated("fp32-hd256", head_dim=256, group=2, dtype="fp32"),
    _Gated("fp32-hd64", dtype="fp32", head_dim=64),
    _Gated("fp32-hd64-int8", dtype="fp32", head_dim=64, cache="i8"),
)
_FEATURES = ("WINDOW", "SOFT_CAP", "ALIBI", "SINKS")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8e4nv": 1, "i8": 1}


def compile_cases(arch: int) -> Iterator[CompileCase]:
    for gated in _GATED:
        yield _case(gated, arch)


def _case(gated: _Gated, arch: int) -> CompileCase:
    cache = gated.cache or gated.dtype
    tuned = tuning.lookup(
        "paged_decode",
        arch,
        head_dim=gated.head_dim,
        group=gated.group,
        block_size=gated.block_size,
        query_bytes=_BYTES[gated.dtype],
        cache_bytes=_BYTES[cache],
    )
    tile = work_blocks(arch, gated.head_dim, gated.group, _BYTES[gated.dtype])["TILE"]
    if cache == "fp8e4nv" and arch < NATIVE_FLOAT8:
        cache = "u8"
    pointers = {
        "q": gated.dtype,
        "cache": cache,
        "out": gated.dtype,
        "kv_scales": "fp32",
        "slopes": "fp32",
        "sinks": "fp32",
        "partials": "fp32",
        "maxima": "fp32",
        "sums": "fp32",
        "block_tables": "i32",
        "header": "i32",
        "program_starts": "i32",
        "records": "i32",
        "counters": "i32",
    }
    strides = {"q_token_stride": "i32", "q_head_stride": "i32"}
    return CompileCase(
        name=f"paged_decode/{gated.name}",
        fn=paged_decode,
        signature={name: f"*{kind}" for name, kind in pointers.items()}
        | strides
        | {"table_stride": "i32", "window": "i32", "scale": "fp32", "soft_cap": "fp32"},
        constexprs={
            **_constants(gated.group, gated.num_kv_heads, gated.head_dim, gated.block_size, tile),
            **{f"HAS_{feature}": feature in gated.features for feature in _FEATURES},
            "QUANTISED": bool(gated.cache),
            "PRODUCT_TYPE": _product_type(_DTYPES[gated.dtype], bool(gated.cache)),
            "INTERPRETED": False,
        },
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        wants=frozenset({ASYNC_COPY}),
        aligned=frozenset([*pointers, *strides]),
    )

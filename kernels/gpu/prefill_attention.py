"""Paged attention on a GPU for rows with many query tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import tuning
from kernels.footprint.attention import AttentionShape
from kernels.gpu import specialized_prefill
from kernels.gpu.compile_case import ASYNC_COPY, TMA, WGMMA, CompileCase
from kernels.gpu.interpreter import interpreted
from kernels.jit import paged_prefill as jit
from kernels.types import AttentionFeatures, AttentionMetadata

NATIVE_FLOAT8 = 89  # from here on the compiler has float8_e4m3fn; before, kernels read its bits
LARGEST_COORDINATE = 2**31 - 1  # of a box in a tensor descriptor


def paged_prefill(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    shape: AttentionShape,
    scale: float,
    features: AttentionFeatures,
    kv_scales: Tensor | None,
    out: Tensor,
) -> None:
    """Writes the rows with more than one query token (every row if ``shape.batch_invariant``).

    Arguments are those of the public paged_attention; out [T, Hq, hd] is of q's dtype, and tokens
    of other rows are left as they are there. Nothing is read back: rows and tokens are found from
    ``metadata`` on the device, within bounds that the host knows. FlashAttention's tiling (Dao et
    al. 2022), with a KV head's query heads and several tokens sharing each tile of keys.
    Raises ValueError for a scale that is not positive or heads that do not lie as they must.
    """
    _check(q, out, scale)
    tokens, rows = q.shape[0], metadata.seq_lens.shape[0]
    if tokens == 0:
        return
    if kv_scales is None:
        special = specialized_prefill.chosen(q, cache_layer, metadata, shape, features)
        if special is not None:
            specialized_prefill.run(q, cache_layer, metadata, scale, features, out, special)
            return
    arch = tuning.architecture(q.device)
    facts = Facts.of(q, cache_layer, shape.batch_invariant)
    tuned = facts.lookup(arch, metadata.max_query_len)
    by_box = bool(tuned.blocks["BOXES"]) and _boxes_fit(cache_layer, tuned.blocks["BLOCK_N"])
    tokens_of_tile, parts = tile_of(tuned.blocks["BLOCK_M"], facts.group)
    num_tiles = tokens // tokens_of_tile + rows
    jit.paged_prefill[(num_tiles * facts.num_kv_heads * parts,)](
        out,
        q,
        stored_numbers(cache_layer, arch),
        _boxes(cache_layer, facts, tuned.blocks["BLOCK_N"]) if by_box else None,
        kv_scales,
        metadata.block_tables,
        metadata.query_start_loc,
        metadata.seq_lens,
        features.alibi_slopes,
        features.sinks,
        rows,
        num_tiles,
        metadata.block_tables.stride(0),
        q.stride(0),
        q.stride(1),
        out.stride(0),
        float(scale),
        float(features.soft_cap),
        features.window,
        **facts.constants(tuned),
        HAS_WINDOW=features.window > 0,
        HAS_SOFT_CAP=features.soft_cap > 0,
        INTERPRETED=interpreted(),
        **tuned.launch,
    )


def _check(q: Tensor, out: Tensor, scale: float) -> None:
    if scale <= 0:
        raise ValueError(f"scale is {scale}; attention on a GPU needs a positive one")
    if q.stride(2) != 1:
        raise ValueError(f"q has strides {list(q.stride())}; a head's channels must be adjacent")
    if out.stride(2) != 1 or (out.shape[1] > 1 and out.stride(1) != out.shape[2]):
        raise ValueError(f"out has strides {list(out.stride())}; a token's heads must be adjacent")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a configuration is chosen by, next to the longest row."""

    num_kv_heads: int
    group: int
    head_dim: int
    block_size: int
    q_bytes: int
    cache_bytes: int
    batch_invariant: bool

    @classmethod
    def of(cls, q: Tensor, cache_layer: Tensor, batch_invariant: bool) -> Facts:
        _, _, num_kv_heads, block_size, head_dim = cache_layer.shape
        return cls(
            num_kv_heads=num_kv_heads,
            group=q.shape[1] // num_kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            q_bytes=q.element_size(),
            cache_bytes=cache_layer.element_size(),
            batch_invariant=batch_invariant,
        )

    @property
    def head_pad(self) -> int:
        return max(16, int(triton.next_power_of_2(self.head_dim)))

    def lookup(self, arch: int, max_query_len: int) -> tuning.Tuning:
        """A batch-invariant step does not tell how long its rows are: one configuration for all."""
        return tuning.lookup(
            "paged_prefill",
            arch,
            head_pad=self.head_pad,
            block_size=self.block_size,
            q_bytes=self.q_bytes,
            cache_bytes=self.cache_bytes,
            lanes=0 if self.batch_invariant else max_query_len * self.group,
        )

    def constants(self, tuned: tuning.Tuning) -> dict[str, int | bool]:
        """The kernel's sizes, and whose rows it takes."""
        return {
            "NUM_KV_HEADS": self.num_kv_heads,
            "GROUP": self.group,
            "HEAD_DIM": self.head_dim,
            "HEAD_PAD": self.head_pad,
            "BLOCK_SIZE": self.block_size,
            "BLOCK_M": tuned.blocks["BLOCK_M"],
            "BLOCK_N": tuned.blocks["BLOCK_N"],
            "LEAST_TOKENS": 1 if self.batch_invariant else 2,
            "ONE_LOOP": self.batch_invariant,
        }


def tile_of(lanes: int, group: int) -> tuple[int, int]:
    """(query tokens of a tile, tiles that share them because a group has more heads than lanes)."""
    heads = min(group, lanes)
    return lanes // heads, triton.cdiv(group, heads)


def stored_numbers(cache_layer: Tensor, arch: int) -> Tensor:
    """The cache as kernels for ``arch`` read it."""
    if cache_layer.dtype is torch.float8_e4m3fn and arch < NATIVE_FLOAT8:
        return cache_layer.view(torch.uint8)
    return cache_layer


def _boxes_fit(cache_layer: Tensor, box: int) -> bool:
    """Whether a tile of keys is one box of the cache seen as rows of channels.

    A bulk copy wants rows, and the first of them, at multiples of 16 bytes.
    """
    channels = cache_layer.shape[4]
    lines = cache_layer.numel() // channels
    aligned = channels * cache_layer.element_size() % 16 == 0 and cache_layer.data_ptr() % 16 == 0
    return aligned and cache_layer.shape[3] % box == 0 and 0 < lines <= LARGEST_COORDINATE


def _boxes(cache_layer: Tensor, facts: Facts, box: int) -> TensorDescriptor:
    lines = cache_layer.view(-1, facts.head_dim)
    return TensorDescriptor.from_tensor(lines, [box, facts.head_pad])


def compile_cases(arch: int) -> Iterator[CompileCase]:
    """Every row of the table, plain where that is what counts, with all features where registers
    are scarcest."""
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
        yield _case(arch, "bf16", "bf16", head_dim, block_size, featured)
    yield _case(arch, "fp16", "fp16", 128, 64, False)
    yield _case(arch, "bf16", "bf16", 128, 64, True, group=7)
    for head_dim in (64, 128, 256):
        yield _case(arch, "bf16", "bf16", head_dim, 64, True, invariant=True)
    yield _case(arch, "bf16", "bf16", 128, 64, True, longest=8)
    float8 = "fp8e4nv" if arch >= NATIVE_FLOAT8 else "u8"
    for dtype, stored, head_dim, block_size in (
        ("bf16", float8, 64, 64),
        ("bf16", float8, 128, 64),
        ("fp16", float8, 128, 64),
        ("bf16", "i8", 64, 64),
        ("bf16", "i8", 128, 16),
        ("bf16", "i8", 128, 64),
        ("bf16", "i8", 256, 64),
    ):
        yield _case(arch, dtype, stored, head_dim, block_size, True)
    yield _case(arch, "fp32", "fp32", 128, 64, True)


def _case(
    arch: int,
    dtype: str,
    stored: str,
    head_dim: int,
    block_size: int,
    featured: bool,
    group: int = 4,
    invariant: bool = False,
    longest: int = 4096,
) -> CompileCase:
    q_bytes = 4 if dtype == "fp32" else 2
    facts = Facts(
        num_kv_heads=8,
        group=group,
        head_dim=head_dim,
        block_size=block_size,
        q_bytes=q_bytes,
        cache_bytes=q_bytes if stored == dtype else 1,
        batch_invariant=invariant,
    )
    tuned = facts.lookup(arch, longest)
    optional = {
        "kv_scales": "*fp32" if stored != dtype else None,
        "alibi_slopes": "*fp32" if featured else None,
        "sinks": "*fp32" if featured else None,
        "cache_rows": None,
    }
    by_box = tuned.blocks["BOXES"] and block_size % tuned.blocks["BLOCK_N"] == 0
    if by_box:
        optional["cache_rows"] = (
            f"tensordesc<{stored}[{tuned.blocks['BLOCK_N']}, {facts.head_pad}]>"
        )
    pointers = {"out": dtype, "q": dtype, "cache": stored}
    pointers |= dict.fromkeys(("block_tables", "query_start_loc", "seq_lens"), "i32")
    integers = ("num_rows", "num_tiles", "table_stride", "window")
    strides = ("q_token_stride", "q_head_stride", "out_token_stride")
    name = f"paged_prefill/{dtype}-{stored}-hd{head_dim}-b{block_size}-g{group}"
    name += "-featured" * featured + "-invariant" * invariant + f"-{longest}" * (longest < 4096)
    return CompileCase(
        name=name,
        fn=jit.paged_prefill,
        signature={argument: f"*{kind}" for argument, kind in pointers.items()}
        | {argument: kind for argument, kind in optional.items() if kind is not None}
        | dict.fromkeys((*integers, *strides), "i32")
        | {"scale": "fp32", "soft_cap": "fp32"},
        constexprs=dict.fromkeys(k for k, kind in optional.items() if kind is None)
        | facts.constants(tuned)
        | {"HAS_WINDOW": featured, "HAS_SOFT_CAP": featured, "INTERPRETED": False},
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        wants=frozenset() if q_bytes == 4 else frozenset({WGMMA, TMA if by_box else ASYNC_COPY}),
        aligned=frozenset([*pointers, *strides])
        | {k for k, kind in optional.items() if kind == "*fp32"},
    )

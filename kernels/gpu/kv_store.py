"""Norm, turn and store on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from kernels import tuning
from kernels.checks import check_contiguous
from kernels.gpu.compile_case import CompileCase
from kernels.gpu.interpreter import interpreted
from kernels.jit import kv_store as jit
from kernels.types import HeadNorms

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def rotary_store_kv(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache_layer: Tensor,
    slot_mapping: Tensor,
    positions: Tensor | None,
    cos_sin: Tensor | None,
    interleaved: bool,
    norms: HeadNorms | None = None,
    kv_scales: Tensor | None = None,
) -> None:
    if k is None or v is None:
        raise NotImplementedError(
            "a GPU turns no queries without keys; leave such a model to a CPU"
        )
    tokens, q_heads, head_dim = q.shape
    if tokens == 0:
        return
    check_contiguous("cache_layer", cache_layer)
    if kv_scales is not None:
        check_contiguous("kv_scales", kv_scales)
    kv_heads, block_size = cache_layer.shape[2:4]
    shape = _Shape(
        # Queries that neither norm nor turn changes need no programs.
        q_heads=q_heads if cos_sin is not None or norms is not None else 0,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        turned=0 if cos_sin is None else cos_sin.shape[1],
        interleaved=interleaved and cos_sin is not None,
        norm=norms is not None,
        norm_last=norms is not None and norms.after_turn,
        norm_offset=0.0 if norms is None else norms.weight_offset,
        largest=0.0 if kv_scales is None else LARGEST[cache_layer.dtype],
    )
    # By head_dim alone: the number of tokens must not change a token's bits.
    tuned = tuning.lookup("rotary_store_kv", tuning.architecture(q.device), head_dim=head_dim)
    jit.rotary_store_kv[shape.grid(tokens, tuned)](
        q,
        k,
        v,
        cache_layer.view(torch.uint8) if shape.largest == 448 else cache_layer,
        kv_scales,
        slot_mapping.contiguous(),
        None if positions is None else positions.contiguous(),
        None if cos_sin is None else cos_sin.contiguous(),
        None if norms is None else norms.query.contiguous(),
        None if norms is None else norms.key.contiguous(),
        tokens,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        0.0 if norms is None else norms.epsilon,
        **shape.constexprs(tuned),
        INTERPRETED=interpreted(),
        **tuned.launch,
    )


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a kernel is compiled for; constant for a model."""

    q_heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    turned: int
    interleaved: bool
    norm: bool
    norm_last: bool
    norm_offset: float
    largest: float

    def grid(self, tokens: int, tuned: tuning.Tuning) -> tuple[int, int]:
        heads = tuned.blocks["HEADS"]
        groups = triton.cdiv(self.q_heads, heads) + 2 * triton.cdiv(self.kv_heads, heads)
        return triton.cdiv(tokens, tuned.blocks["TOKENS"]), groups

    def constexprs(self, tuned: tuning.Tuning) -> dict[str, int | float | bool]:
        return {
            "Q_HEADS": self.q_heads,
            "KV_HEADS": self.kv_heads,
            "HEAD_DIM": self.head_dim,
            "BLOCK_SIZE": self.block_size,
            "NORM": self.norm,
            "NORM_LAST": self.norm_last,
            "NORM_OFFSET": self.norm_offset,
            "TURNED": self.turned,
            "INTERLEAVED": self.interleaved,
            "LARGEST": self.largest,
            "PAIRS": triton.next_power_of_2(max(1, self.turned // 2)),
            "PADDED_REST": triton.next_power_of_2(max(1, self.head_dim - self.turned)),
            "PADDED_HEAD": triton.next_power_of_2(self.head_dim),
            "TOKENS": tuned.blocks["TOKENS"],
            "HEADS": tuned.blocks["HEADS"],
        }


def compile_cases(arch: int) -> Iterator[CompileCase]:
    for head_dim in (64, 128, 256):
        tuned = tuning.lookup("rotary_store_kv", arch, head_dim=head_dim)
        plain = _Shape(
            q_heads=32,
            kv_heads=8,
            head_dim=head_dim,
            block_size=64,
            turned=head_dim,
            interleaved=False,
            norm=False,
            norm_last=False,
            norm_offset=0.0,
            largest=0.0,
        )
        for name, shape in (
            ("turn", plain),
            ("norm-turn", replace(plain, norm=True)),
            ("norm-1-turn", replace(plain, norm=True, norm_offset=1.0)),
            ("turn-norm", replace(plain, norm=True, norm_last=True)),
            ("norm-turn-int8", replace(plain, norm=True, largest=127.0)),
            ("turn-fp8", replace(plain, largest=448.0)),
            ("turn-half-pairs", replace(plain, turned=head_dim // 2, interleaved=True)),
            ("store", replace(plain, q_heads=0, turned=0)),
        ):
            yield _case(f"{name}-bf16-hd{head_dim}", "bf16", shape, tuned)
            if head_dim == 128 and name == "norm-turn":
                yield _case(f"{name}-fp32-hd{head_dim}", "fp32", shape, tuned)


def _case(name: str, dtype: str, shape: _Shape, tuned: tuning.Tuning) -> CompileCase:
    pointers = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), f"*{dtype}")
    pointers["cache_ptr"] = {0.0: f"*{dtype}", 127.0: "*i8", 448.0: "*u8"}[shape.largest]
    pointers["slots_ptr"] = "*i64"
    optional = {"positions_ptr": "*i64", "cos_sin_ptr": "*fp32"} if shape.turned else {}
    optional |= dict.fromkeys(("q_norm_ptr", "k_norm_ptr"), f"*{dtype}") if shape.norm else {}
    optional |= {"scales_ptr": "*fp32"} if shape.largest else {}
    all_optional = {"positions_ptr", "cos_sin_ptr", "q_norm_ptr", "k_norm_ptr", "scales_ptr"}
    strides = ("q_stride", "k_stride", "v_stride")
    return CompileCase(
        name=f"rotary_store_kv/{name}",
        fn=jit.rotary_store_kv,
        signature=pointers
        | optional
        | {"tokens": "i32", "epsilon": "fp32"}
        | dict.fromkeys(strides, "i32"),
        constexprs=dict.fromkeys(sorted(all_optional - set(optional)))
        | shape.constexprs(tuned)
        | {"INTERPRETED": False},
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        aligned=frozenset({*pointers, *optional, *strides}),
    )

"""Log-probabilities on a GPU: two launches, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from kernels import tuning
from kernels.footprint import round_up
from kernels.footprint.gpu_sampling import ALIGNMENT, MERGE_TOP, TILE
from kernels.gpu.compile_case import CompileCase
from kernels.jit import logprobs as jit


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """As kernels.token_logprobs. Up to MERGE_TOP likeliest come from one reading of the logits;
    beyond that each costs a reading of the row, by one program."""
    return run(logits, token_ids, num_top, TILE)


def run(logits: Tensor, token_ids: Tensor, num_top: int, tile: int) -> tuple[Tensor, Tensor]:
    """``token_logprobs`` with a given tile."""
    rows, vocab = logits.shape
    ids = torch.empty((rows, 1 + num_top), dtype=torch.int32, device=logits.device)
    logprobs = torch.empty((rows, 1 + num_top), dtype=torch.float32, device=logits.device)
    if rows == 0:
        return ids, logprobs
    if vocab > 1 and logits.stride(1) != 1:
        logits = logits.contiguous()
    tiles = triton.cdiv(vocab, tile)
    merged = num_top if num_top <= MERGE_TOP else 0
    scratch = _scratch(rows, tiles, merged, logits.device)
    arch = tuning.architecture(logits.device)
    tuned = tuning.lookup("scan_logprobs", arch)
    jit.scan_logprobs[(rows * tiles,)](
        logits,
        *scratch,
        vocab,
        tiles,
        merged,
        logits.stride(0),
        TILE=tile,
        **tuned.launch,
    )
    tuned = tuning.lookup("merge_logprobs", arch)
    jit.merge_logprobs[(rows,)](
        logits,
        token_ids.contiguous(),
        *scratch,
        ids,
        logprobs,
        vocab,
        tiles,
        num_top,
        logits.stride(0),
        TILES=max(16, triton.next_power_of_2(tiles)),
        WIDTH=_width(tiles, merged, num_top),
        STEP=min(tuned.blocks["STEP"], tile),
        **tuned.launch,
    )
    return ids, logprobs


def _width(tiles: int, merged: int, num_top: int) -> int:
    if merged < num_top:
        return 0
    return max(16, int(triton.next_power_of_2(tiles * merged)))


def _scratch(rows: int, tiles: int, merged: int, device: torch.device) -> tuple[Tensor, ...]:
    """tile_best, tile_sum, top_values and top_ids, in one buffer."""
    counts = (rows * tiles, rows * tiles, rows * tiles * merged, rows * tiles * merged)
    strides = [round_up(4 * count, ALIGNMENT) for count in counts]
    buffer = torch.empty(sum(strides), dtype=torch.uint8, device=device)
    parts, start = [], 0
    for count, stride in zip(counts, strides, strict=True):
        parts.append(buffer[start : start + 4 * count])
        start += stride
    return (*(part.view(torch.float32) for part in parts[:3]), parts[3].view(torch.int32))


def compile_cases(arch: int) -> Iterator[CompileCase]:
    tiles = 32  # of a vocabulary of 131,072
    tuned = tuning.lookup("scan_logprobs", arch)
    tables = dict.fromkeys(("logits", "tile_best", "tile_sum", "top_values"), "*fp32")
    tables["top_ids"] = "*i32"
    numbers = dict.fromkeys(("vocab", "num_tiles", "num_top", "logits_stride"), "i32")
    yield CompileCase(
        name="scan_logprobs",
        fn=jit.scan_logprobs,
        signature=tables | numbers,
        constexprs={"TILE": TILE},
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        aligned=frozenset({*tables, "vocab", "logits_stride"}),
    )
    tuned = tuning.lookup("merge_logprobs", arch)
    out = {"token_ids": "*i64", "ids": "*i32", "logprobs": "*fp32"}
    for num_top in (5, 20, MERGE_TOP + 1):
        merged = num_top if num_top <= MERGE_TOP else 0
        yield CompileCase(
            name=f"merge_logprobs/top{num_top}",
            fn=jit.merge_logprobs,
            signature=tables | out | numbers,
            constexprs={
                "TILES": tiles,
                "WIDTH": _width(tiles, merged, num_top),
                "STEP": tuned.blocks["STEP"],
            },
            num_warps=tuned.num_warps,
            num_stages=tuned.num_stages,
            aligned=frozenset({*tables, *out, "vocab", "logits_stride"}),
        )

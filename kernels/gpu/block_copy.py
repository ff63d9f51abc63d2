"""Copies of whole blocks of the KV cache on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from kernels import tuning
from kernels.gpu.compile_case import CompileCase
from kernels.jit import block_copy as jit

HELD_PAIRS = 1024  # more than that do not fit into a program's registers
WORD_TYPES = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def copy_blocks(cache: Tensor, sources: Tensor, destinations: Tensor) -> None:
    pairs = sources.shape[0]
    if pairs == 0 or cache.numel() == 0:
        return
    sources, destinations = sources.contiguous(), destinations.contiguous()
    if pairs > HELD_PAIRS:
        _copy_staged(cache, sources, destinations)
        return
    words = _words(cache)
    layers, blocks, count = words.shape
    tuned = tuning.lookup("move_blocks", tuning.architecture(cache.device), pairs=pairs)
    chunk = tuned.blocks["CHUNK"]
    jit.move_blocks[(triton.cdiv(count, chunk), layers)](
        words,
        sources,
        destinations,
        pairs,
        blocks,
        WORDS=count,
        PADDED_PAIRS=triton.next_power_of_2(pairs),
        CHUNK=chunk,
        **tuned.launch,
    )


def _copy_staged(cache: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """A layer at a time, which bounds the buffer: launches run in order, so that a layer's sources
    are all read before the first block of it is written."""
    buffer = torch.empty(
        (1, sources.shape[0], *cache.shape[2:]), dtype=cache.dtype, device=cache.device
    )
    for index in range(cache.shape[0]):
        layer = cache[index : index + 1]
        gather_blocks(layer, sources, buffer)
        scatter_blocks(layer, destinations, buffer)


def gather_blocks(cache: Tensor, sources: Tensor, out: Tensor) -> None:
    _stage(cache, sources, out, gather=True)


def scatter_blocks(cache: Tensor, destinations: Tensor, blocks: Tensor) -> None:
    _stage(cache, destinations, blocks, gather=False)


def _stage(cache: Tensor, ids: Tensor, staged: Tensor, gather: bool) -> None:
    if ids.shape[0] == 0 or cache.numel() == 0:
        return
    words, staged_words = _words(cache), _words(staged)
    layers, blocks, count = words.shape
    tuned = tuning.lookup("stage_blocks", tuning.architecture(cache.device))
    chunk = tuned.blocks["CHUNK"]
    jit.stage_blocks[(ids.shape[0] * triton.cdiv(count, chunk), layers)](
        words,
        ids.contiguous(),
        staged_words,
        ids.shape[0],
        blocks,
        WORDS=count,
        CHUNK=chunk,
        GATHER=gather,
        **tuned.launch,
    )


def _words(cache: Tensor) -> Tensor:
    """[layers, blocks, words]: a block of a layer in the longest integers that divide it."""
    size = cache[0, 0].numel() * cache.itemsize
    width = next(width for width in WORD_TYPES if size % width == 0)
    return cache.view(torch.uint8).view(*cache.shape[:2], size).view(WORD_TYPES[width])


def compile_cases(arch: int) -> Iterator[CompileCase]:
    words = {"WORDS": 64 * 128 * 8 * 2 * 2 // 8}  # 64 tokens, 8 heads of 128, 16 bits
    for pairs in (1, 2, 8, 64, 256, HELD_PAIRS):
        tuned = tuning.lookup("move_blocks", arch, pairs=pairs)
        pointers = ("cache_ptr", "sources_ptr", "destinations_ptr")
        yield CompileCase(
            name=f"move_blocks/{pairs}",
            fn=jit.move_blocks,
            signature=dict.fromkeys(pointers, "*i64") | {"pairs": "i32", "blocks": "i32"},
            constexprs=words | {"PADDED_PAIRS": pairs, "CHUNK": tuned.blocks["CHUNK"]},
            num_warps=tuned.num_warps,
            num_stages=tuned.num_stages,
            aligned=frozenset(pointers),
        )
    tuned = tuning.lookup("stage_blocks", arch)
    pointers = ("cache_ptr", "ids_ptr", "staged_ptr")
    for gather in (True, False):
        yield CompileCase(
            name=f"stage_blocks/{'gather' if gather else 'scatter'}",
            fn=jit.stage_blocks,
            signature=dict.fromkeys(pointers, "*i64") | {"count": "i32", "blocks": "i32"},
            constexprs=words | {"CHUNK": tuned.blocks["CHUNK"], "GATHER": gather},
            num_warps=tuned.num_warps,
            num_stages=tuned.num_stages,
            aligned=frozenset(pointers),
        )

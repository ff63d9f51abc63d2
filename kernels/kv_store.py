"""Writing the KV cache: norm, rotation and store in one operation, and copies of whole blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.checks import (
    FLOATS,
    INTEGERS,
    check_both,
    check_contiguous,
    check_dtype,
    check_same_device,
    check_shape,
)
from kernels.dispatch import select
from kernels.types import HeadNorms

QUANTISED = (torch.float8_e4m3fn, torch.int8)


def _check_heads(
    name: str, heads: Tensor, tokens: int, cache_layer: Tensor, dtypes: tuple[torch.dtype, ...]
) -> None:
    """[T, heads, head_dim] with the heads of a token side by side; tokens may be strided."""
    check_shape(name, heads, (tokens, None, cache_layer.shape[4]))
    check_dtype(name, heads, dtypes)
    if heads.stride(2) != 1 or (heads.shape[1] > 1 and heads.stride(1) != heads.shape[2]):
        raise ValueError(
            f"{name} has strides {list(heads.stride())}; the heads of a token must lie side by"
            f" side, so strides must be [any, {heads.shape[2]}, 1]"
        )


def check_cache_layer(cache_layer: Tensor, kv_scales: Tensor | None = None) -> None:
    check_shape("cache_layer", cache_layer, (None, 2, None, None, None))
    check_dtype("cache_layer", cache_layer, FLOATS if kv_scales is None else QUANTISED)
    if kv_scales is not None:
        check_shape("kv_scales", kv_scales, tuple(cache_layer.shape[:4]))
        check_dtype("kv_scales", kv_scales, (torch.float32,))
        check_contiguous("kv_scales", kv_scales[:1])
    row = cache_layer.shape[3] * cache_layer.shape[4]
    if not cache_layer[:1].is_contiguous() or cache_layer.stride(0) % row:
        raise ValueError(
            f"cache_layer has strides {list(cache_layer.stride())}; a block must be contiguous, and"
            f" the next one a multiple of block_size * head_dim, {row}, from it"
        )


def _check_qkv(
    q: Tensor, k: Tensor | None, v: Tensor | None, cache_layer: Tensor, kv_scales: Tensor | None
) -> None:
    """A quantised cache takes any floats, as long as q, k and v have the same."""
    dtypes = (cache_layer.dtype,) if kv_scales is None else (q.dtype,)
    check_dtype("q", q, FLOATS)
    check_both("k", k, "v", v)
    kept = tuple((name, one) for name, one in (("k", k), ("v", v)) if one is not None)
    for name, heads in (("q", q), *kept):
        _check_heads(name, heads, q.shape[0], cache_layer, dtypes)
    for name, heads in kept:
        if heads.shape[1] != cache_layer.shape[2]:
            raise ValueError(
                f"{name} has {heads.shape[1]} heads; cache_layer has {cache_layer.shape[2]}"
            )


def _check_norms(
    q_norm: Tensor | None, k_norm: Tensor | None, head_dim: int, *, keys: bool
) -> None:
    if keys:
        check_both("q_norm", q_norm, "k_norm", k_norm)
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None:
            check_shape(name, norm, (head_dim,))
            check_dtype(name, norm, FLOATS)


def _check_turn(
    positions: Tensor | None, cos_sin: Tensor | None, *, tokens: int, head_dim: int
) -> None:
    check_both("cos_sin", cos_sin, "positions", positions)
    if cos_sin is None or positions is None:
        return
    check_shape("positions", positions, (tokens,))
    check_dtype("positions", positions, (torch.int64,))
    check_shape("cos_sin", cos_sin, (None, None))
    check_dtype("cos_sin", cos_sin, (torch.float32,))
    if cos_sin.shape[1] % 2 or cos_sin.shape[1] > head_dim:
        raise ValueError(
            f"cos_sin turns {cos_sin.shape[1]} channels; it must be an even number"
            f" of at most head_dim, {head_dim}"
        )


def rotary_store_kv(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache_layer: Tensor,
    slot_mapping: Tensor,
    *,
    positions: Tensor | None = None,
    cos_sin: Tensor | None = None,
    interleaved: bool = False,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_epsilon: float = 1e-6,
    norm_weight_offset: float = 0.0,
    norm_after_turn: bool = False,
    kv_scales: Tensor | None = None,
) -> None:
    """Turns q and k in place (where ``cos_sin`` is given) and writes k and v to their slots.

    q is [T, Hq, hd]; k and v are [T, Hkv, hd]; views of one qkv tensor are fine. Without k and v
    queries alone are normalised and turned, on a CPU: their layer reads another's cache.
    cache_layer is [num_blocks, 2, Hkv, block_size, hd] of their dtype. Token t goes to block
    ``slot_mapping[t] // block_size`` at offset ``slot_mapping[t] % block_size``; slots [T] int64
    are distinct. On a GPU a token with a negative slot is padding: neither its q and k nor the
    cache are written, and its position is not looked up. cos_sin [P, dim] float32 comes from
    rotary_table, positions [T] int64 index it, and only the first ``dim`` channels of a head turn:
    as pairs (i, i + dim/2), or (2i, 2i + 1) when ``interleaved``. float32 arithmetic, rounded
    after the norm and after the turn.

    ``q_norm`` and ``k_norm`` [hd] are the weights of an RMSNorm over each head's channels, applied
    before the turn, or after it where ``norm_after_turn``; ``norm_weight_offset`` is
    add_rms_norm's. (A norm over the channels of all heads together is add_rms_norm without a
    residual, called before this.) A quantised cache (float8_e4m3fn or int8) comes with
    ``kv_scales`` [num_blocks, 2, Hkv, block_size] float32, which are written too: a slot's scale of
    one head is its largest absolute value over the format's largest number (448 or 127), or 1 where
    all are zero; numbers are rounded to nearest even. k and v themselves stay unquantised in their
    own tensors.
    Raises ValueError for a wrong argument, NotImplementedError for what the device's backend does
    not have.
    """
    check_cache_layer(cache_layer, kv_scales)
    _check_qkv(q, k, v, cache_layer, kv_scales)
    _check_norms(q_norm, k_norm, q.shape[2], keys=k is not None)
    check_shape("slot_mapping", slot_mapping, (q.shape[0],))
    check_dtype("slot_mapping", slot_mapping, (torch.int64,))
    _check_turn(positions, cos_sin, tokens=q.shape[0], head_dim=q.shape[2])
    check_same_device(
        cache_layer=cache_layer,
        q=q,
        k=k,
        v=v,
        slot_mapping=slot_mapping,
        positions=positions,
        cos_sin=cos_sin,
        q_norm=q_norm,
        k_norm=k_norm,
        kv_scales=kv_scales,
    )
    run = select("rotary_store_kv", cache_layer.device)
    norms = None
    if q_norm is not None:
        norms = HeadNorms(
            q_norm,
            q_norm if k_norm is None else k_norm,
            norm_epsilon,
            norm_weight_offset,
            norm_after_turn,
        )
    run(q, k, v, cache_layer, slot_mapping, positions, cos_sin, interleaved, norms, kv_scales)


def copy_blocks(cache: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """Copies whole blocks in every layer: ``cache[:, destinations] = cache[:, sources]``.

    cache is [num_layers, num_blocks, 2, Hkv, block_size, hd]; sources and destinations are [n]
    int32 or int64. All sources are read before anything is written, so that a block may be both.
    Destinations are distinct. The scales of a quantised cache, one axis shorter, are copied as a
    cache with a head_dim of 1. Raises ValueError for a wrong argument.
    """
    check_shape("cache", cache, (None, None, 2, None, None, None))
    check_contiguous("cache", cache)
    for name, ids in (("sources", sources), ("destinations", destinations)):
        check_shape(name, ids, (sources.shape[0],))
        check_dtype(name, ids, INTEGERS)
    check_same_device(cache=cache, sources=sources, destinations=destinations)
    run = select("copy_blocks", cache.device)
    run(cache, sources, destinations)


def _check_staged(cache: Tensor, name: str, ids: Tensor, staged_name: str, staged: Tensor) -> None:
    check_shape("cache", cache, (None, None, 2, None, None, None))
    check_contiguous("cache", cache)
    check_shape(name, ids, (None,))
    check_dtype(name, ids, INTEGERS)
    check_shape(staged_name, staged, (cache.shape[0], ids.shape[0], *cache.shape[2:]))
    check_dtype(staged_name, staged, (cache.dtype,))
    check_contiguous(staged_name, staged)
    check_same_device(cache=cache, **{name: ids, staged_name: staged})


def gather_blocks(cache: Tensor, sources: Tensor, out: Tensor) -> None:
    """Copies whole blocks of every layer side by side: ``out[:] = cache[:, sources]``.

    cache is [num_layers, num_blocks, 2, Hkv, block_size, hd], sources [n] int32 or int64, out
    [num_layers, n, 2, Hkv, block_size, hd] of the cache's dtype: one contiguous run, which a single
    transfer moves to pinned memory. Raises ValueError for a wrong argument.
    """
    _check_staged(cache, "sources", sources, "out", out)
    run = select("gather_blocks", cache.device)
    run(cache, sources, out)


def scatter_blocks(cache: Tensor, destinations: Tensor, blocks: Tensor) -> None:
    """The way back: ``cache[:, destinations] = blocks``; shapes as gather_blocks.

    Destinations are distinct. Raises ValueError for a wrong argument.
    """
    _check_staged(cache, "destinations", destinations, "blocks", blocks)
    run = select("scatter_blocks", cache.device)
    run(cache, destinations, blocks)

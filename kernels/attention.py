"""Attention: over the paged KV cache, and over plain sequences without a cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.backends import attention_workspace_bytes
from kernels.checks import FLOATS, check_dtype, check_same_device, check_shape
from kernels.dispatch import backend_for, select
from kernels.footprint.attention import AttentionShape
from kernels.kv_store import check_cache_layer
from kernels.types import PLAIN, AttentionFeatures, AttentionMetadata


class AttentionWorkspace:
    """The scratch of paged_attention, allocated once for the largest step of a shape.

    One workspace serves one call at a time; it may be shared by all layers, and where a backend
    keeps nothing in it between calls, as on a CPU, by layers of several shapes. ``nbytes`` is
    exactly ``attention_workspace_bytes`` of the shape that needs most, and of the backend in use on
    the device.
    """

    def __init__(self, *shapes: AttentionShape, device: torch.device | str = "cpu") -> None:
        backend = backend_for(torch.device(device))
        self.nbytes = max(attention_workspace_bytes(shape, backend) for shape in shapes)
        self.buffer = torch.empty(self.nbytes, dtype=torch.uint8, device=device)


def prepare_attention(
    *,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    slot_mapping: Tensor,
    positions: Tensor,
    shape: AttentionShape,
    max_query_len: int | None = None,
    max_seq_len: int | None = None,
    workspace: AttentionWorkspace | None = None,
    like: AttentionMetadata | None = None,
) -> AttentionMetadata:
    """The metadata of one step, with the backend's work list; made once, used by every layer.

    query_start_loc [B + 1] int32 rises from 0 to T, strictly: every row has at least one token.
    seq_lens [B] int32 is each row's context with this step's tokens. block_tables
    [B, max_blocks] int32 is read only as far as a row's context reaches. slot_mapping [T] and
    positions [T] are int64. Tensors may be views of persistent buffers: they are not copied, but
    the work list is made from their values now; on a CPU block_tables are read when the first layer
    needs them.

    ``like`` is the metadata of another group of the KV cache in the same step, made from the same
    query_start_loc, seq_lens and shape: what does not depend on block tables is taken from there.

    On a GPU nothing is read back: the values are trusted, ``max_query_len`` and ``max_seq_len``
    (upper bounds) must be given, and the work list is built on the device in ``workspace``, which
    must be given too. A row of no tokens is padding there. Raises ValueError for a wrong argument.
    """
    metadata = AttentionMetadata(
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        block_tables=block_tables,
        slot_mapping=slot_mapping,
        positions=positions,
        max_query_len=max_query_len or 0,
        max_seq_len=max_seq_len or 0,
        work=None if like is None else like.work,
    )
    _check_step(metadata)
    if like is not None and (
        like.query_start_loc is not query_start_loc or like.seq_lens is not seq_lens
    ):
        raise ValueError("like is the metadata of other rows; its tensors must be the very same")
    run: Callable[..., AttentionMetadata] = select("prepare_attention", block_tables.device)
    return run(metadata, shape, None if workspace is None else workspace.buffer)


def _check_step(step: AttentionMetadata) -> None:
    rows = step.seq_lens.shape[0]
    check_shape("seq_lens", step.seq_lens, (None,))
    check_shape("query_start_loc", step.query_start_loc, (rows + 1,))
    check_shape("block_tables", step.block_tables, (rows, None))
    check_shape("slot_mapping", step.slot_mapping, (None,))
    check_shape("positions", step.positions, tuple(step.slot_mapping.shape))
    narrow = {
        "query_start_loc": step.query_start_loc,
        "seq_lens": step.seq_lens,
        "block_tables": step.block_tables,
    }
    wide = {"slot_mapping": step.slot_mapping, "positions": step.positions}
    for dtype, tensors in ((torch.int32, narrow), (torch.int64, wide)):
        for name, tensor in tensors.items():
            check_dtype(name, tensor, (dtype,))
    check_same_device(**narrow, **wide)


def paged_attention(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    workspace: AttentionWorkspace | None = None,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """Causal attention of every row's tokens over that row's own context in the cache.

    q is [T, Hq, hd]; cache_layer is [num_blocks, 2, Hkv, block_size, hd] of q's dtype, with this
    step's keys and values already stored (rotary_store_kv); on a CPU its blocks may lie apart, as
    the shape tells (``block_rows``). Returns [T, Hq, hd] in q's dtype.
    ``scale`` multiplies q.k before the softmax. What lies in the cache outside a row's context,
    NaN included, has no influence. With a window nothing is read of blocks that end before the
    first key that the row's first token of this step sees, nor their entries in the block table,
    which may be anything: the caller has freed them. Without a ``workspace`` one is allocated for
    the call.

    A quantised cache (float8_e4m3fn or int8) comes with ``kv_scales`` [num_blocks, 2, Hkv,
    block_size] float32: the value of an element is its number times its slot's and head's scale.
    Raises ValueError for a wrong argument, NotImplementedError for a feature that the device's
    backend does not have.
    """
    check_cache_layer(cache_layer, kv_scales)
    check_shape("q", q, (metadata.slot_mapping.shape[0], None, cache_layer.shape[4]))
    check_dtype("q", q, FLOATS if kv_scales is not None else (cache_layer.dtype,))
    check_features(features, q.shape[1])
    check_same_device(
        cache_layer=cache_layer,
        q=q,
        kv_scales=kv_scales,
        alibi_slopes=features.alibi_slopes,
        sinks=features.sinks,
    )
    run: Callable[..., Tensor] = select("paged_attention", cache_layer.device)
    buffer = None if workspace is None else workspace.buffer
    return run(q, cache_layer, metadata, scale, buffer, features, kv_scales)


def check_features(features: AttentionFeatures, num_query_heads: int) -> None:
    if features.window < 0 or features.soft_cap < 0:
        raise ValueError(
            f"features have window {features.window} and soft_cap {features.soft_cap}; neither may"
            " be negative, and 0 is off"
        )
    for name, tensor in (("alibi_slopes", features.alibi_slopes), ("sinks", features.sinks)):
        if tensor is not None:
            check_shape(f"features.{name}", tensor, (num_query_heads,))
            check_dtype(f"features.{name}", tensor, (torch.float32,))


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    causal: bool,
    scale: float,
    features: AttentionFeatures = PLAIN,
    max_query_len: int | None = None,
) -> Tensor:
    """Attention within each of B sequences that lie one after the other, without a cache.

    q is [T, Hq, hd], k and v are [T, Hkv, hd]; sequence b is
    ``cu_seqlens[b] : cu_seqlens[b + 1]``, cu_seqlens [B + 1] int32 rising from 0 to T. Returns
    [T, Hq, hd] in q's dtype. A window also hides keys at j >= i + window where not causal. On a
    GPU cu_seqlens is not read back and ``max_query_len``, the longest sequence, must be given.
    Raises ValueError for a wrong argument, NotImplementedError for a feature that the device's
    backend does not have.
    """
    check_shape("q", q, (None, None, None))
    check_dtype("q", q, FLOATS)
    check_shape("k", k, (q.shape[0], None, q.shape[2]))
    check_shape("v", v, tuple(k.shape))
    for name, tensor in (("k", k), ("v", v)):
        check_dtype(name, tensor, (q.dtype,))
    if k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads; it must be a multiple of k's {k.shape[1]}")
    check_shape("cu_seqlens", cu_seqlens, (None,))
    check_dtype("cu_seqlens", cu_seqlens, (torch.int32,))
    check_features(features, q.shape[1])
    check_same_device(q=q, k=k, v=v, cu_seqlens=cu_seqlens)
    run: Callable[..., Tensor] = select("varlen_attention", q.device)
    return run(q, k, v, cu_seqlens, max_query_len, causal, scale, features)

"""Rotation, KV-cache writes and block copies on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.types import HeadNorms


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    """Turns [T, H, hd] in place; cos and sin are [T, 1, dim/2] float32."""
    half = cos.shape[2]
    if interleaved:
        first, second = heads[..., 0 : 2 * half : 2], heads[..., 1 : 2 * half : 2]
    else:
        first, second = heads[..., :half], heads[..., half : 2 * half]
    # Type promotion lifts 16-bit channels to float32; the stores below round once.
    turned = first * cos
    turned.addcmul_(second.to(cos.dtype), sin, value=-1)
    other = second * cos
    other.addcmul_(first.to(cos.dtype), sin)
    first.copy_(turned)
    second.copy_(other)


def _turn(
    q: Tensor,
    k: Tensor | None,
    cos_sin: Tensor | None,
    positions: Tensor | None,
    interleaved: bool,
) -> None:
    if cos_sin is not None and positions is not None:
        cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=2)
        for heads in _side_by_side(q, k):
            _rotate(heads, cos, sin, interleaved)


def _normalise(q: Tensor, k: Tensor | None, norms: HeadNorms) -> None:
    """RMSNorm over the channels of each head, in place."""
    for heads, weight in ((q, norms.query), (k, norms.key)):
        if heads is None:
            continue
        values = heads.float()
        square = values.pow(2).mean(dim=-1, keepdim=True)
        factor = weight.float() + norms.weight_offset if norms.weight_offset else weight
        heads.copy_(values.mul_(square.add_(norms.epsilon).rsqrt_()).mul_(factor))


def _side_by_side(q: Tensor, k: Tensor | None) -> tuple[Tensor, ...]:
    """q and k as one tensor where they are neighbours in one qkv tensor: half the operations."""
    if k is None:
        return (q,)
    tokens, heads, head_dim = q.shape
    follows = k.storage_offset() == q.storage_offset() + heads * head_dim
    shared = q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    if follows and shared and q.stride() == k.stride():
        return (q.as_strided((tokens, heads + k.shape[1], head_dim), q.stride()),)
    return q, k


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
    if kv_scales is not None:
        raise NotImplementedError("a CPU writes no quantised KV cache; leave it off")
    if norms is not None and not norms.after_turn:
        _normalise(q, k, norms)
    _turn(q, k, cos_sin, positions, interleaved)
    if norms is not None and norms.after_turn:
        _normalise(q, k, norms)
    if k is None or v is None:
        return
    _, _, num_heads, block_size, head_dim = cache_layer.shape
    blocks = slot_mapping.div(block_size, rounding_mode="floor")
    # Within a block rows of head_dim are numbered (K|V * num_heads + head) * block_size + offset.
    head_0 = slot_mapping + blocks * (cache_layer.stride(0) // head_dim - block_size)
    key_rows = (head_0.unsqueeze(1) + torch.arange(num_heads) * block_size).view(-1)
    rows = block_rows(cache_layer, head_dim)
    rows.index_copy_(0, key_rows, k.reshape(-1, head_dim))
    rows.index_copy_(0, key_rows + num_heads * block_size, v.reshape(-1, head_dim))


def block_rows(cache_layer: Tensor, width: int) -> Tensor:
    """A layer of the cache as rows of ``width`` elements, from its first block to the end of its
    last one; between two of its blocks lie those of other layers, where it has not all of a place.
    """
    blocks, *_ = cache_layer.shape
    rows = ((blocks - 1) * cache_layer.stride(0) + cache_layer[0].numel()) // width
    return cache_layer.as_strided((rows, width), (width, 1))


def copy_blocks(cache: Tensor, sources: Tensor, destinations: Tensor) -> None:
    for layer in cache.unbind(0):  # one layer at a time bounds the copy that is held
        layer.index_copy_(0, destinations.long(), layer.index_select(0, sources))


def gather_blocks(cache: Tensor, sources: Tensor, out: Tensor) -> None:
    torch.index_select(cache, 1, sources, out=out)


def scatter_blocks(cache: Tensor, destinations: Tensor, blocks: Tensor) -> None:
    cache.index_copy_(1, destinations.long(), blocks)

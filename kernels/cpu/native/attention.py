"""The paged cache, native: turning and storing, and attention over the block table in place."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from kernels.cpu.attention import checked_rows
from kernels.cpu.native import structs
from kernels.cpu.native.program import CACHE_FORMATS, address, all_float32, run_once
from kernels.footprint.attention import AttentionShape
from kernels.footprint.native_attention import PARTIAL_BYTES
from kernels.types import PLAIN, AttentionFeatures, AttentionMetadata, HeadNorms


def prepare_step(
    metadata: AttentionMetadata, shape: AttentionShape, buffer: Tensor | None
) -> AttentionMetadata:
    """As kernels.prepare_attention: the step's values are looked at, and no list is made.

    Raises ValueError where these do not fit together.
    """
    starts, contexts = checked_rows(metadata, shape)
    lengths = [after - before for before, after in itertools.pairwise(starts)]
    return replace(
        metadata,
        max_query_len=max(lengths, default=0),
        max_seq_len=max(contexts, default=0),
        work=shape,
    )


def kv_group(metadata: AttentionMetadata) -> structs.KVGroup:
    return structs.KVGroup(
        address(metadata.block_tables),
        metadata.block_tables.stride(0),
        address(metadata.slot_mapping),
    )


def step_of(metadata: AttentionMetadata) -> structs.Step:
    """What one group's operations want to know of a step."""
    step = structs.Step(
        tokens=metadata.slot_mapping.shape[0],
        rows=metadata.seq_lens.shape[0],
        positions=address(metadata.positions),
        query_start_loc=address(metadata.query_start_loc),
        seq_lens=address(metadata.seq_lens),
    )
    step.groups[0] = kv_group(metadata)
    return step


def attention_call(
    q: Tensor,
    cache_layer: Tensor,
    out: Tensor,
    scratch: Tensor | None,
    *,
    scale: float,
    features: AttentionFeatures,
    kv_scales: Tensor | None = None,
    group: int = 0,
) -> structs.Attention:
    """q and out are [T, Hq, hd], maybe strided from token to token."""
    _, _, kv_heads, block_size, head_dim = cache_layer.shape
    call = structs.Attention(
        address(q),
        address(out),
        address(cache_layer),
        address(kv_scales),
        address(features.alibi_slopes),
        address(features.sinks),
        None,
        q.stride(0),
        out.stride(0),
        cache_layer.stride(0),
        0 if kv_scales is None else kv_scales.stride(0),
        0,
        scale,
        features.soft_cap,
        features.window,
        q.shape[1],
        kv_heads,
        head_dim,
        block_size,
        CACHE_FORMATS[cache_layer.dtype],
        group,
    )
    if scratch is not None:
        share_contexts(call, scratch)
    return call


def share_contexts(call: structs.Attention, scratch: Tensor) -> None:
    """Gives a call room for partial results: then threads share the contexts of few queries."""
    call.scratch = address(scratch)
    call.partials = scratch.nbytes // PARTIAL_BYTES


def _check_pair(cache_layer: Tensor, kv_scales: Tensor | None) -> None:
    if (cache_layer.dtype is torch.int8) != (kv_scales is not None):
        raise ValueError(
            f"the cache is in {cache_layer.dtype}, with {'no' if kv_scales is None else 'its'} "
            "scales: int8 has some, and nothing else"
        )


def paged(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    buffer: Tensor | None,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """As kernels.paged_attention; q is float32, whatever the cache holds."""
    _check_pair(cache_layer, kv_scales)
    if not isinstance(metadata.work, AttentionShape):
        raise ValueError("metadata was not made by prepare_attention for native kernels")
    all_float32((("q", q),))
    if not q.shape[0]:
        return torch.empty(q.shape)
    out = torch.empty(q.shape)
    run_once(
        attention_call(
            q,
            cache_layer,
            out,
            buffer,
            scale=scale,
            features=features,
            kv_scales=kv_scales,
        ),
        step_of(metadata),
    )
    return out


def rotary_store_call(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache_layer: Tensor,
    *,
    cos_sin: Tensor | None,
    interleaved: bool,
    norms: HeadNorms | None,
    kv_scales: Tensor | None = None,
    group: int = 0,
) -> structs.RotaryStore:
    """``norms``' weights are float32, with what is added to them."""
    _, _, kv_heads, block_size, head_dim = cache_layer.shape
    return structs.RotaryStore(
        address(q),
        address(k),
        address(v),
        None if norms is None else address(norms.query),
        None if norms is None else address(norms.key),
        address(cos_sin),
        address(cache_layer),
        address(kv_scales),
        q.stride(0),
        0 if k is None else k.stride(0),
        0 if v is None else v.stride(0),
        cache_layer.stride(0),
        0 if kv_scales is None else kv_scales.stride(0),
        0.0 if norms is None else norms.epsilon,
        q.shape[1],
        kv_heads,
        head_dim,
        0 if cos_sin is None else cos_sin.shape[1],
        interleaved,
        norms is not None and norms.after_turn,
        block_size,
        CACHE_FORMATS[cache_layer.dtype],
        group,
    )


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
    """As kernels.rotary_store_kv; q, k and v are float32, whatever the cache holds."""
    _check_pair(cache_layer, kv_scales)
    all_float32((("q", q), ("k", k), ("v", v)))
    if norms is not None:
        offset = norms.weight_offset
        query, key = (one.float().add(offset).contiguous() for one in (norms.query, norms.key))
        norms = replace(norms, query=query, key=key, weight_offset=0.0)
    step = structs.Step(tokens=q.shape[0], positions=address(positions))
    step.groups[0] = structs.KVGroup(None, 0, address(slot_mapping))
    run_once(
        rotary_store_call(
            q,
            k,
            v,
            cache_layer,
            cos_sin=cos_sin,
            interleaved=interleaved,
            norms=norms,
            kv_scales=kv_scales,
        ),
        step,
    )

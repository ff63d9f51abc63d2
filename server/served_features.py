"""What a ModelSpec may describe and the engine does not compute yet. No torch.

A spec grows with what is published, the decoder with what is served: between the two stands this
one list. What is on it is planned, and refused at start; it is never computed as if it were not
there.
"""

from __future__ import annotations

from collections.abc import Iterator

from weights.spec import ModelSpec, NormKind, NormPlacement, ParallelBlock, QkNorm


def unserved_features(spec: ModelSpec) -> tuple[str, ...]:
    """Names, for a message, of what ``spec`` needs and the engine lacks; () where it can serve."""
    return tuple(_unserved(spec))


def _unserved(spec: ModelSpec) -> Iterator[str]:
    norm, attention = spec.norm, spec.attention
    if norm.placement is not NormPlacement.PRE:
        yield f"norms placed {norm.placement}"
    if norm.kind is NormKind.LAYER and not norm.bias:
        yield "Layer norms without biases"
    if spec.parallel is not ParallelBlock.NONE:
        yield "attention and MLP in parallel"
    if attention.qk_norm is not QkNorm.NONE:
        yield "norms of queries and keys"
    if any(spec.windows):
        yield "sliding windows"
    if spec.local_rope is not None:
        yield "other rotary frequencies in layers with a window"
    if attention.soft_cap is not None or spec.logit_soft_cap is not None:
        yield "soft caps"
    if spec.experts is not None:
        yield "experts"
    if spec.embedding_scale != 1.0:
        yield "a scaled embedding"
    if spec.position_offset:
        yield "an offset of learned positions"
    if spec.unembedding_bias:
        yield "a bias of the logits"

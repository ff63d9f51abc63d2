"""Bytes of the largest step's intermediate tensors, phase by phase.

A step walks through a layer's operations; what one operation no longer needs is gone before the
next allocates. So each operation is a phase, listed with everything alive during it, and the peak
is the largest phase. Temporaries that kernels hold inside an operation are listed beside its
inputs and outputs. A test holds this list against the allocations of a real step.

Letters: T tokens in the step, D hidden size, I intermediate size, hd head_dim, V vocabulary, R rows
of logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.workspace import AttentionShape
from weights.spec import ModelSpec, NormKind, PositionKind

Tensors = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """What is alive during one operation of a step: (name, bytes) of each tensor."""

    name: str
    tensors: Tensors

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.tensors)


def phases(
    model: ModelSpec, shape: AttentionShape, *, logit_rows: int, num_top: int
) -> tuple[Phase, ...]:
    """Every phase of the largest step of ``model``, in the order in which a step meets them.

    ``logit_rows`` is the most rows of logits at once, ``num_top`` the most alternatives reported.
    """
    return (
        *_attention_phases(model, shape),
        *_mlp_phases(model, shape),
        *_logit_phases(model, shape, logit_rows, num_top),
    )


def _attention_phases(model: ModelSpec, shape: AttentionShape) -> tuple[Phase, ...]:
    tokens, element = shape.max_num_batched_tokens, shape.element_bytes
    heads = model.attention
    hidden = tokens * model.hidden_size * element
    residual = ("residual", hidden)
    qkv = ("qkv", tokens * (heads.query_size + 2 * heads.kv_size) * element)
    attended = ("attended", tokens * heads.query_size * element)
    embed: Tensors = (("hidden", hidden),)
    if model.position is PositionKind.LEARNED:
        embed += (("positions", hidden),)
    return (
        Phase("embedding", embed),
        Phase("attention_norm", _norm(model, tokens, element)),
        Phase("qkv", (residual, ("normed", hidden), qkv)),
        Phase("rotary", (residual, qkv, *_rotary(model, tokens, element))),
        Phase("store", (residual, qkv, *_store(model, tokens, element))),
        Phase("attention", (residual, qkv, attended)),
        Phase("attention_output", (residual, attended, ("hidden", hidden))),
    )


def _mlp_phases(model: ModelSpec, shape: AttentionShape) -> tuple[Phase, ...]:
    tokens, element = shape.max_num_batched_tokens, shape.element_bytes
    hidden = tokens * model.hidden_size * element
    residual = ("residual", hidden)
    wide = tokens * model.mlp.intermediate_size
    up = ("up", (2 if model.mlp.gated else 1) * wide * element)
    inner = ("inner", wide * element)
    # A gated 16-bit activation works on float32 copies: of the gate, then of its image.
    lifted: Tensors = (inner,)
    if model.mlp.gated and element < 4:
        lifted = (("gate_float32", 4 * wide), ("inner_float32", 4 * wide))
    return (
        Phase("mlp_norm", _norm(model, tokens, element)),
        Phase("up", (residual, ("normed", hidden), up)),
        Phase("activation", (residual, up, *lifted)),
        Phase("down", (residual, inner, ("hidden", hidden))),
    )


def _norm(model: ModelSpec, rows: int, element: int) -> Tensors:
    """Both inputs, their sum, and the kernel's way from the sum to the result."""
    size = rows * model.hidden_size
    given = (("hidden", size * element), ("residual", size * element), ("total", size * element))
    if element == 4:
        return (*given, ("normed", size * 4))
    lifted = (("total_float32", size * 4), ("normed_float32", size * 4))
    if model.norm.kind is NormKind.LAYER:
        return (*given, *lifted)
    return (*given, *lifted, ("normed", size * element))


def _rotary(model: ModelSpec, tokens: int, element: int) -> Tensors:
    """Cosines and sines of the step, and both turned halves of all query heads in float32."""
    if model.position is not PositionKind.ROTARY:
        return ()
    half = 4 * tokens * model.attention.num_query_heads * (model.rope.dim // 2)
    lifted = (("half_float32", half),) if element < 4 else ()
    angles = ("cos_sin", 4 * tokens * model.rope.dim)
    return (angles, ("turned_first", half), ("turned_second", half), *lifted)


def _store(model: ModelSpec, tokens: int, element: int) -> Tensors:
    """Keys, then values, side by side as the cache's rows want them, and those rows' numbers."""
    angles = 4 * tokens * model.rope.dim if model.position is PositionKind.ROTARY else 0
    return (
        ("cos_sin", angles),
        ("kv_rows", tokens * model.attention.kv_size * element),
        ("row_numbers", 16 * tokens * model.attention.num_kv_heads),
    )


def _logit_phases(
    model: ModelSpec, shape: AttentionShape, rows: int, num_top: int
) -> tuple[Phase, ...]:
    """Rows that need logits are picked out of the last layer's outputs, normalised, multiplied."""
    tokens, element = shape.max_num_batched_tokens, shape.element_bytes
    sampled_rows = min(rows, shape.max_num_seqs)
    hidden = tokens * model.hidden_size * element
    every = (("all_hidden", hidden), ("all_residual", hidden))
    picked_rows = rows + sampled_rows
    picked = ("picked", picked_rows * model.hidden_size * element)
    logits = ("logits", 4 * rows * model.vocab_size)
    sampled = sampled_rows * model.vocab_size
    narrow = () if element == 4 else (("logits_narrow", element * rows * model.vocab_size),)
    return (
        Phase("final_norm", (*every, *_norm(model, picked_rows, element))),
        Phase("logits", (picked, logits, *narrow)),
        Phase("logprobs", (picked, logits, *_logprobs(rows, model.vocab_size, num_top))),
        Phase("sample", (picked, ("logits", 4 * sampled), ("sample_temporary", 48 * sampled))),
    )


def _logprobs(rows: int, vocab: int, num_top: int) -> Tensors:
    """The asking rows' logits set apart, their log-softmax, and what is reported."""
    wide = 4 * rows * vocab
    return (("asked", wide), ("log_softmax", wide), ("reported", 12 * rows * (1 + num_top)))

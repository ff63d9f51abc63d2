"""Bytes of the largest step's intermediate tensors, phase by phase, and of the kernels' workspace.

A step walks through a layer's operations; what one operation no longer needs is gone before the
next allocates. So each operation is a phase, listed with everything alive during it, and the peak
is the largest phase. Letters: T tokens in the step, D hidden size, V vocabulary, R rows of logits.

Kernels hold temporaries of their own (a float32 copy, a mask); they are booked here as bytes per
element of what they work on, and a test holds them against the allocations of a real step.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.workspace import AttentionShape
from weights.spec import ModelSpec, PositionKind

# Temporaries of the CPU kernels, in bytes per element of their input.
NORM_TEMPORARY = 12  # a float32 copy, its square, the scaled result before rounding
ROTARY_TEMPORARY = 16  # float32 halves, rotated, before they are written back
ACTIVATION_TEMPORARY = 8  # a float32 copy and its image
SAMPLE_TEMPORARY = 48  # sorted values and ids, probabilities, cumulated, masks, random words
LOGPROB_TEMPORARY = 8  # log-softmax, and the comparison that ranks


@dataclass(frozen=True, slots=True)
class Phase:
    """What is alive during one operation of a step: (name, bytes) of each tensor."""

    name: str
    tensors: tuple[tuple[str, int], ...]

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.tensors)


def phases(
    model: ModelSpec, shape: AttentionShape, *, logit_rows: int, num_top: int
) -> tuple[Phase, ...]:
    """Every phase of the largest step of ``model``, in the order in which a step meets them."""
    layer = _layer_phases(model, shape)
    return (*layer, *_logit_phases(model, shape, logit_rows, num_top))


def _layer_phases(model: ModelSpec, shape: AttentionShape) -> tuple[Phase, ...]:
    tokens, element = shape.max_num_batched_tokens, shape.element_bytes
    hidden = tokens * model.hidden_size * element
    attention = model.attention
    queries = tokens * attention.query_size * element
    qkv = tokens * (attention.query_size + 2 * attention.kv_size) * element
    inner = tokens * model.mlp.intermediate_size * element
    up = 2 * inner if model.mlp.gated else inner
    rotated = tokens * (attention.query_size + attention.kv_size)
    rotary = ROTARY_TEMPORARY * rotated if model.position is PositionKind.ROTARY else 0
    norm = (
        ("residual", hidden),
        ("hidden", hidden),
        ("residual_out", hidden),
        ("normed", hidden),
        ("norm_temporary", NORM_TEMPORARY * tokens * model.hidden_size),
    )
    activation = ACTIVATION_TEMPORARY * tokens * model.mlp.intermediate_size
    residual, normed = ("residual", hidden), ("normed", hidden)
    return (
        Phase("attention_norm", norm),
        Phase("qkv", (residual, normed, ("qkv", qkv))),
        Phase("rotary", (residual, ("qkv", qkv), ("rotary_temporary", rotary))),
        Phase("attention", (residual, ("qkv", qkv), ("attended", queries))),
        Phase("attention_output", (residual, ("attended", queries), ("hidden", hidden))),
        Phase("mlp_norm", norm),
        Phase("up", (residual, normed, ("up", up))),
        Phase(
            "activation",
            (residual, ("up", up), ("inner", inner), ("activation_temporary", activation)),
        ),
        Phase("down", (residual, ("inner", inner), ("hidden", hidden))),
    )


def _logit_phases(
    model: ModelSpec, shape: AttentionShape, rows: int, num_top: int
) -> tuple[Phase, ...]:
    """Rows that need logits are picked out of the last residual, then cut into R at a time."""
    element, vocab = shape.element_bytes, model.vocab_size
    picked = ("picked", shape.max_num_batched_tokens * model.hidden_size * element)
    logits = ("logits", 4 * rows * vocab)
    narrow = () if element == 4 else (("logits_narrow", element * rows * vocab),)
    reported = ("reported", 8 * shape.max_num_batched_tokens * (1 + num_top))
    return (
        Phase("logits", (picked, reported, logits, *narrow)),
        Phase(
            "logprobs",
            (picked, reported, logits, ("logprob_temporary", LOGPROB_TEMPORARY * rows * vocab)),
        ),
        Phase(
            "sample",
            (picked, reported, logits, ("sample_temporary", SAMPLE_TEMPORARY * rows * vocab)),
        ),
    )

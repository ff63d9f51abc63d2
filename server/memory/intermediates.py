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

from kernels.footprint.attention import QUERY_TILES, AttentionShape, attention_temporary_bytes
from kernels.footprint.linear import FEW_ROWS, is_transposed, product_temporaries, result_rows
from weights.spec import ModelSpec, NormKind, PositionKind

# The sampler works on this much of the logits at a time; beside them it holds, in bytes per logit:
# counts and mask of penalties (5), the penalised row (4), the scaled one (4), two copies as
# truncation narrows rows down (8), and sorted values with the ranking of equals among them (28).
SAMPLE_LOGIT_BYTES = 2 << 20
SAMPLE_TEMPORARY = 49
LOGPROB_TEMPORARY = 16  # likewise: rows set apart (4), and their ranking where logits are equal

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

    ``logit_rows`` are the most rows of logits at once, ``num_top`` the most alternatives reported.
    """
    work_list = ("work_list", _work_list(shape))  # made once, alive in every layer
    layer = (*_attention_phases(model, shape), *_mlp_phases(model, shape))
    return (
        *(Phase(phase.name, (*phase.tensors, work_list)) for phase in layer),
        *_logit_phases(model, shape, logit_rows, num_top),
    )


def _work_list(shape: AttentionShape) -> int:
    """Where attention finds the blocks it gathers: an int64 per block, head, K and V.

    A row that decodes reads its own blocks: every row all of them, because rows that share a prefix
    each list its blocks, so that the pool's size bounds nothing. A chunk reads its context again
    for every query tile.
    """
    per_row = -(-shape.max_model_len // shape.block_size)
    readers = shape.max_num_seqs + shape.max_num_batched_tokens // QUERY_TILES[-1]
    per_token = 48 * shape.max_num_batched_tokens  # which query is where, sees how far, is picked
    # Of every reader's last key tile: its positions, and the slots behind the context, as int64.
    last = 4 * shape.key_tile + 16 * shape.num_kv_heads * (shape.block_size - 1)
    return per_token + readers * (16 * shape.num_kv_heads * per_row + last)


def sample_rows(vocab_size: int) -> int:
    """How many rows of logits are sampled or ranked at a time."""
    return max(1, SAMPLE_LOGIT_BYTES // (4 * vocab_size))


def _attention_phases(model: ModelSpec, shape: AttentionShape) -> tuple[Phase, ...]:
    tokens, element = shape.max_num_batched_tokens, shape.element_bytes
    heads = model.attention
    hidden = tokens * model.hidden_size * element
    residual = ("residual", hidden)
    qkv_size = heads.query_size + 2 * heads.kv_size
    tall = result_rows(tokens, element)  # of what a product made
    qkv = ("qkv", tall * qkv_size * element)
    attended = ("attended", tokens * heads.query_size * element)
    made = ("hidden", tall * model.hidden_size * element)
    scratch = ("attention_temporary", attention_temporary_bytes(shape))
    widened_qkv = product_temporaries(tokens, model.hidden_size, qkv_size, element)
    widened_output = product_temporaries(tokens, heads.query_size, model.hidden_size, element)
    embed: Tensors = (("hidden", hidden),)
    if model.position is PositionKind.LEARNED:
        embed += (("positions", hidden),)
    return (
        Phase("embedding", embed),
        Phase("attention_norm", _norm(model, tokens, element)),
        Phase("qkv", (residual, ("normed", hidden), qkv, *widened_qkv)),
        Phase("rotary", (residual, qkv, *_rotary(model, tokens, element))),
        Phase("store", (residual, qkv, *_store(model, tokens, element))),
        Phase("attention", (residual, qkv, attended, scratch)),
        Phase("attention_output", (residual, attended, made, *widened_output)),
    )


def _mlp_phases(model: ModelSpec, shape: AttentionShape) -> tuple[Phase, ...]:
    tokens, element = shape.max_num_batched_tokens, shape.element_bytes
    hidden = tokens * model.hidden_size * element
    residual = ("residual", hidden)
    wide = tokens * model.mlp.intermediate_size
    up_size = (2 if model.mlp.gated else 1) * model.mlp.intermediate_size
    tall = result_rows(tokens, element)  # of what a product made
    up = ("up", tall * up_size * element)
    made = ("hidden", tall * model.hidden_size * element)
    widened_up = product_temporaries(tokens, model.hidden_size, up_size, element)
    widened_down = product_temporaries(
        tokens, model.mlp.intermediate_size, model.hidden_size, element
    )
    inner = ("inner", wide * element)
    # A gated 16-bit activation works on float32 copies: of the gate, then of its image.
    lifted: Tensors = (inner,)
    if model.mlp.gated and element < 4:
        lifted = (("gate_float32", 4 * wide), ("inner_float32", 4 * wide))
    return (
        Phase("mlp_norm", _norm(model, tokens, element)),
        Phase("up", (residual, ("normed", hidden), up, *widened_up)),
        Phase("activation", (residual, up, *lifted)),
        Phase("down", (residual, inner, made, *widened_down)),
    )


def _norm(model: ModelSpec, rows: int, element: int) -> Tensors:
    """Both inputs, their sum, and the kernel's way from the sum to the result."""
    size = rows * model.hidden_size
    made = result_rows(rows, element) * model.hidden_size * element
    given = (("hidden", made), ("residual", size * element), ("total", size * element))
    if element == 4:
        return (*given, ("normed", size * 4))
    lifted = (("total_float32", size * 4), ("normed_float32", size * 4))
    if model.norm.kind is NormKind.LAYER:
        return (*given, *lifted)
    return (*given, *lifted, ("normed", size * element))


def _rotary(model: ModelSpec, tokens: int, element: int) -> Tensors:
    """Cosines and sines of the step, and both turned halves of queries and keys in float32."""
    if model.position is not PositionKind.ROTARY:
        return ()
    heads = model.attention.num_query_heads + model.attention.num_kv_heads
    half = 4 * tokens * heads * (model.rope.dim // 2)
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
    tokens, element, vocab = shape.max_num_batched_tokens, shape.element_bytes, model.vocab_size
    sampled = min(rows, shape.max_num_seqs)
    hidden = tokens * model.hidden_size * element
    every = (("all_hidden", hidden), ("all_residual", hidden))
    picked_rows = rows + sampled  # those that are scored, and those that are sampled
    picked = ("picked", picked_rows * model.hidden_size * element)
    logits = ("logits", 4 * rows * vocab)
    at_once = min(sampled, sample_rows(vocab))
    return (
        Phase("final_norm", (*every, *_norm(model, picked_rows, element))),
        Phase("logits", (picked, logits, *_unembedding(model, rows, element))),
        Phase(
            "logprobs",
            (
                picked,
                logits,
                ("logprob_temporary", LOGPROB_TEMPORARY * min(rows, sample_rows(vocab)) * vocab),
                ("reported", 32 * rows * (1 + num_top)),
            ),
        ),
        Phase(
            "sample",
            (
                picked,
                ("logits", 4 * sampled * vocab),
                ("sample_temporary", SAMPLE_TEMPORARY * at_once * vocab),
            ),
        ),
    )


def _unembedding(model: ModelSpec, rows: int, element: int) -> Tensors:
    """What the largest product holds beside its float32 result."""
    hidden, vocab = model.hidden_size, model.vocab_size
    held = product_temporaries(rows, hidden, vocab, element)
    if element < 4:
        return (*held, ("logits_narrow", element * result_rows(rows, element) * vocab))
    most_twice = FEW_ROWS[-1]  # that many rows are made transposed, and exist twice for a moment
    if rows > most_twice and is_transposed(most_twice, hidden, vocab):
        return (("transposed_product", 4 * max(0, 2 * most_twice - rows) * vocab),)
    return held

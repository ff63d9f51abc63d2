"""Bytes of the largest step's intermediate tensors on a CPU, phase by phase.

What a layer's operations read and make follows from its program (server.memory.layer_program); what
torch's kernels hold inside them is listed here, and so are the logits and the choice of tokens. The
peak is the largest phase. A test holds this list against the allocations of a real step.

Letters: T tokens in the step, D hidden size, I intermediate size, hd head_dim, V vocabulary, R rows
of logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from kernels.footprint.attention import QUERY_TILES, AttentionShape, attention_temporary_bytes
from kernels.footprint.linear import FEW_ROWS, is_transposed, product_temporaries, result_rows
from server.memory import layer_program as program
from server.memory.kv_groups import layer_groups
from server.memory.layer_program import (
    Activate,
    Add,
    AddNorm,
    Attend,
    Clip,
    Embed,
    LayerInputs,
    Norm,
    Operation,
    Product,
    Scale,
    ScaleQueries,
    StreamScale,
    Value,
    ValueNorm,
    WeighInput,
)
from server.memory.phases import Phase, Tensors, forward_phases, logit_phases, query_factors
from server.units import ceil_div
from weights.spec import Activation, ModelSpec, NormKind, PositionKind

# The sampler works on this much of the logits at a time; beside them it holds, in bytes per logit:
# counts and mask of penalties (5), the penalised row (4), the scaled one (4), two copies as
# truncation narrows rows down (8), and sorted values with the ranking of equals among them (28).
SAMPLE_LOGIT_BYTES = 2 << 20
SAMPLE_TEMPORARY = 49
LOGPROB_TEMPORARY = 16  # likewise: rows set apart (4), and their ranking where logits are equal


def phases(
    model: ModelSpec, shapes: Sequence[AttentionShape], *, logit_rows: int, num_top: int
) -> tuple[Phase, ...]:
    """Every phase of the largest step of ``model``, in the order in which a step meets them.

    ``shapes`` are attention's in each of ``kinds_of_layers``; what comes before the layers is told
    with each of these. ``logit_rows`` are the most rows of logits at once, ``num_top`` the most
    alternatives reported.
    """
    work_list = ("work_list", _work_list(model, shapes))  # made once, alive in every layer
    kinds = map(model.as_layer, model.kinds_of_layers)
    forward = (
        phase
        for kind, shape in zip(kinds, shapes, strict=True)
        for phase in forward_phases(kind, CpuFootprint(kind, shape))
    )
    return (
        *(Phase(phase.name, (*phase.tensors, work_list)) for phase in forward),
        *_logit_phases(model, shapes[0], logit_rows, num_top),
    )


def _work_list(model: ModelSpec, shapes: Sequence[AttentionShape]) -> int:
    """Where attention finds the blocks it gathers: an int64 per block, head, K and V, for every
    group of the KV cache; and for every window, what is the same in the groups that have it.

    A row that decodes reads its own blocks: every row all of them, because rows that share a prefix
    each list its blocks, so that the pool's size bounds nothing. A chunk reads its context again
    for every query tile.
    """
    any_of = shapes[0]
    readers = any_of.max_num_seqs + any_of.max_num_batched_tokens // QUERY_TILES[-1]
    shared = sum(
        _shared_list(shape, readers, window) for shape in set(shapes) for window in shape.windows
    )
    blocks_of_heads = sum(
        model.layer_attention(first).num_kv_heads * _blocks_read(any_of, model.window(first))
        for first, *_ in layer_groups(model)
    )
    return shared + readers * 16 * blocks_of_heads


def _shared_list(shape: AttentionShape, readers: int, window: int) -> int:
    """Of every token: which query is where, sees how far, is picked. Of every reader's key tiles
    that are partly seen: their positions; and the slots behind the context, as int64."""
    per_token, edges, stale = 48, 1, shape.block_size - 1
    if window:
        per_token, edges, stale = 56, 2, shape.block_size + shape.key_step
    per_reader = 4 * edges * shape.key_tile + 16 * shape.num_kv_heads * stale
    return per_token * shape.max_num_batched_tokens + readers * per_reader


def _blocks_read(shape: AttentionShape, window: int) -> int:
    """Blocks that a reader lists: its context's, or those of a window before its first query."""
    tokens = shape.max_model_len
    if window:
        tokens = min(tokens, window + QUERY_TILES[-1] + shape.key_step)
    return ceil_div(tokens, shape.block_size)


def sample_rows(vocab_size: int) -> int:
    """How many rows of logits are sampled or ranked at a time."""
    return max(1, SAMPLE_LOGIT_BYTES // (4 * vocab_size))


@dataclass(frozen=True, slots=True)
class CpuFootprint:
    """What torch's operations hold in a step of ``shape.max_num_batched_tokens`` tokens."""

    model: ModelSpec
    shape: AttentionShape

    def bytes_of(self, step: Operation, value: Value) -> int:
        tokens, element = self.shape.max_num_batched_tokens, self.shape.element_bytes
        rows = result_rows(tokens, element) if isinstance(step, Product) else tokens
        return rows * value.channels * element

    def moments(self, step: Operation) -> tuple[Phase, ...]:
        model, tokens = self.model, self.shape.max_num_batched_tokens
        element = self.shape.element_bytes
        made = tuple((value.name, self.bytes_of(step, value)) for value in step.writes)
        match step:
            case Embed():
                looked_up = (("positions", made[0][1]),) if step.learned_positions else ()
                return (Phase(step.name, (*made, *looked_up)),)
            case AddNorm():
                return (Phase(step.name, _normalising(model, tokens, element)),)
            case Norm():
                _total, *rest = _normalising(model, tokens, element)
                return (Phase(step.name, tuple(rest)),)
            case program.QkNorm():
                inside = _normalising_heads(model, tokens, element)
                return (Phase(step.name, (*made, ("norm_temporary", inside))),)
            case Add() | Scale():
                return (Phase(step.name, made),)
            case LayerInputs():
                _, (_, size) = made
                wide = step.writes[1].channels
                held = product_temporaries(tokens, model.hidden_size, wide, element)
                normed = _normalising_rows(model, tokens * wide, element)
                return (
                    Phase("layer_input_projection", (("layer_inputs", size), *held)),
                    Phase(step.name, normed),
                )
            case WeighInput():
                return (Phase(step.name, made),)
            case ValueNorm():
                rows = tokens * model.attention.kv_size
                return (Phase(step.name, _normalising_rows(model, rows, element)),)
            case Clip() | StreamScale():
                return (Phase(step.name, ()),)
            case ScaleQueries():
                return (Phase(step.name, query_factors(tokens)),)
            case Product():
                (out,) = step.writes
                held = product_temporaries(tokens, step.columns, out.channels, element)
                return (Phase(step.name, (*made, *held)),)
            case Attend():
                flash = ("attention_temporary", attention_temporary_bytes(self.shape))
                squares = _qk_norm(model, tokens, element)
                return (
                    *((Phase("qk_norm", squares),) if squares else ()),
                    Phase("rotary", _rotary(model, tokens, element)),
                    Phase("store", _store(model, tokens, element)),
                    Phase(step.name, (*made, flash)),
                )
            case Activate():
                return (Phase(step.name, _activating(model, tokens, element) or made),)
        assert_never(step)


def _activating(model: ModelSpec, tokens: int, element: int) -> Tensors:
    """A gated 16-bit activation works on float32 copies: of the gate, then of its image. xIELU
    works in float32 on both of its branches at once, and a mask of which to take."""
    wide = 4 * tokens * model.mlp.intermediate_size
    if model.mlp.activation is Activation.XIELU:
        copied = (("up_float32", wide),) if element < 4 else ()
        return (*copied, ("above", wide), ("below", wide), ("mask", wide // 4))
    lifted = model.mlp.gated and element < 4
    return (("gate_float32", wide), ("inner_float32", wide)) if lifted else ()


def _normalising(model: ModelSpec, rows: int, element: int) -> Tensors:
    """The sum of both inputs, and the kernel's way from it to the result."""
    return _normalising_rows(model, rows * model.hidden_size, element)


def _normalising_heads(model: ModelSpec, tokens: int, element: int) -> int:
    """What is held beside normalised queries and keys, the ones made after the others. A Layer norm
    of float32 heads copies them first, since they lie apart in their tensor."""
    copied = 4 if element == 4 and model.norm.kind is NormKind.LAYER else 0

    def held(size: int) -> int:
        _total, *rest = _normalising_rows(model, size, element)
        return sum(nbytes for _, nbytes in rest) + copied * size

    queries, keys = tokens * model.attention.query_size, tokens * model.attention.kv_size
    return max(held(queries), queries * element + held(keys)) - (queries + keys) * element


def _normalising_rows(model: ModelSpec, size: int, element: int) -> Tensors:
    total = ("total", size * element)
    if element == 4:
        return (total, ("normed", size * 4))
    lifted = (("total_float32", size * 4), ("normed_float32", size * 4))
    if model.norm.kind is NormKind.LAYER:
        return (total, *lifted)
    return (total, *lifted, ("normed", size * element))


def _qk_norm(model: ModelSpec, tokens: int, element: int) -> Tensors:
    """Squares of the queries, which are more than the keys, beside what they are squared from: in
    float32 themselves."""
    if not program.attend_normalises(model):
        return ()
    size = 4 * tokens * model.attention.query_size
    return (("squares", size), *((("queries_float32", size),) if element < 4 else ()))


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
    return (
        ("kv_rows", tokens * model.attention.kv_size * element),
        ("row_numbers", 16 * tokens * model.attention.num_kv_heads),
    )


def _logit_phases(
    model: ModelSpec, shape: AttentionShape, rows: int, num_top: int
) -> Iterator[Phase]:
    tokens, element, vocab = shape.max_num_batched_tokens, shape.element_bytes, model.vocab_size
    sampled = min(rows, shape.max_num_seqs)
    picked = (rows + sampled) * model.hidden_size * element
    ranked, drawn = (min(most, sample_rows(vocab)) * vocab for most in (rows, sampled))
    logits = ("logits", 4 * rows * vocab)
    return logit_phases(
        model,
        tokens=tokens,
        rows=rows + sampled,
        element_bytes=element,
        final_norm=(
            *(("picked_hidden", picked), ("picked_residual", picked)),
            *_normalising(model, rows + sampled, element),
        ),
        logits=(logits, *_unembedding(model, rows, element)),
        logprobs=(
            logits,
            ("logprob_temporary", LOGPROB_TEMPORARY * ranked),
            ("reported", 32 * rows * (1 + num_top)),
        ),
        sample=(
            ("logits", 4 * sampled * vocab),
            ("sample_temporary", SAMPLE_TEMPORARY * drawn),
        ),
    )


def _unembedding(model: ModelSpec, rows: int, element: int) -> Tensors:
    """What the largest product holds beside its float32 result."""
    hidden, vocab = model.table_width, model.vocab_size
    held = product_temporaries(rows, hidden, vocab, element)
    if element < 4:
        return (*held, ("logits_narrow", element * result_rows(rows, element) * vocab))
    most_twice = FEW_ROWS[-1]  # that many rows are made transposed, and exist twice for a moment
    if rows > most_twice and is_transposed(most_twice, hidden, vocab):
        return (("transposed_product", 4 * max(0, 2 * most_twice - rows) * vocab),)
    return held

"""The structures of csrc/quire_cpu.h as ctypes has them, field by field. No torch.

A test compares their sizes with what the library says of its own.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

MOST_GROUPS = 128


class Operation(IntEnum):
    """An operation's place in a level's table, as levels.h numbers them."""

    LINEAR = 0
    ATTENTION = 1
    EMBEDDING = 2
    NORM = 3
    ACTIVATION = 4
    SUM = 5
    ROTARY_STORE = 6
    PACK = 7
    QUERY_SCALE = 8
    GATHER_STEP = 9
    COMMIT_TOKENS = 10
    SAMPLE = 11
    LOGITS = 12


class NumberFormat(IntEnum):
    F32 = 0
    BF16 = 1
    F16 = 2
    INT8 = 3


class Call(Structure):
    _fields_ = (("operation", c_int32), ("arguments", c_void_p))


class KVGroup(Structure):
    _fields_ = (
        ("block_tables", c_void_p),
        ("table_stride", c_int64),
        ("slot_mapping", c_void_p),
    )


class Step(Structure):
    _fields_ = (
        ("tokens", c_int32),
        ("rows", c_int32),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("query_start_loc", c_void_p),
        ("seq_lens", c_void_p),
        ("groups", KVGroup * MOST_GROUPS),
    )


class Linear(Structure):
    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("rows", c_void_p),
        ("residual", c_void_p),
        ("out", c_void_p),
        ("scratch", c_void_p),
        ("inputs", c_int64),
        ("channels", c_int64),
        ("out_stride", c_int64),
        ("format", c_int32),
        ("rows_at_most", c_int32),
    )


class Pack(Structure):
    _fields_ = (
        ("from_rows", c_void_p),
        ("to", c_void_p),
        ("scratch", c_void_p),
        ("channels", c_int64),
        ("inputs", c_int64),
        ("format", c_int32),
        ("to_format", c_int32),
    )


class Embedding(Structure):
    _fields_ = (
        ("table", c_void_p),
        ("added", c_void_p),
        ("out", c_void_p),
        ("rows", c_int64),
        ("width", c_int64),
        ("scale", c_float),
        ("format", c_int32),
        ("packed", c_int32),
        ("of_positions", c_int32),
    )


class Norm(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("residual", c_void_p),
        ("rows", c_void_p),
        ("total", c_void_p),
        ("out", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("x_stride", c_int64),
        ("width", c_int64),
        ("epsilon", c_float),
        ("heads", c_int32),
        ("centred", c_int32),
        ("own_weights", c_int32),
    )


class Activation(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("other", c_void_p),
        ("out", c_void_p),
        ("x_stride", c_int64),
        ("other_stride", c_int64),
        ("width", c_int64),
        ("numbers", c_float * 4),
        ("kind", c_int32),
    )


class Sum(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("other", c_void_p),
        ("out", c_void_p),
        ("width", c_int64),
        ("factor", c_float),
        ("limit", c_float),
    )


class QueryScale(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("width", c_int64),
        ("length", c_int64),
        ("beta", c_float),
    )


class RotaryStore(Structure):
    _fields_ = (
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("cos_sin", c_void_p),
        ("cache", c_void_p),
        ("scales", c_void_p),
        ("q_stride", c_int64),
        ("k_stride", c_int64),
        ("v_stride", c_int64),
        ("block_stride", c_int64),
        ("scale_stride", c_int64),
        ("epsilon", c_float),
        ("query_heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("turned", c_int32),
        ("interleaved", c_int32),
        ("norm_after_turn", c_int32),
        ("block_size", c_int32),
        ("cache_format", c_int32),
        ("group", c_int32),
    )


class Attention(Structure):
    _fields_ = (
        ("q", c_void_p),
        ("out", c_void_p),
        ("cache", c_void_p),
        ("scales", c_void_p),
        ("alibi_slopes", c_void_p),
        ("sinks", c_void_p),
        ("scratch", c_void_p),
        ("q_stride", c_int64),
        ("out_stride", c_int64),
        ("block_stride", c_int64),
        ("scale_stride", c_int64),
        ("partials", c_int64),
        ("scale", c_float),
        ("soft_cap", c_float),
        ("window", c_int32),
        ("query_heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("cache_format", c_int32),
        ("group", c_int32),
    )


class StepTable(Structure):
    _fields_ = (
        ("packet", c_void_p),
        ("rows_at", c_int32),
        ("starts_at", c_int32),
        ("computed_at", c_int32),
        ("samples_at", c_int32),
        ("outputs_at", c_int32),
    )


class GatherStep(Structure):
    _fields_ = (
        ("table", StepTable),
        ("records", c_void_p),
        ("words", c_int64),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slot_mapping", c_void_p),
        ("query_start_loc", c_void_p),
        ("seq_lens", c_void_p),
        ("block_tables", c_void_p),
        ("floats", c_void_p),
        ("top_k", c_void_p),
        ("keys", c_void_p),
        ("output_positions", c_void_p),
        ("max_blocks", c_int64),
        ("floats_stride", c_int64),
        ("table_at", c_int32),
        ("tokens_at", c_int32),
        ("num_rows", c_int32),
        ("block_size", c_int32),
    )


class CommitTokens(Structure):
    _fields_ = (
        ("table", StepTable),
        ("records", c_void_p),
        ("words", c_int64),
        ("token_ids", c_void_p),
        ("non_finite", c_void_p),
        ("results", c_void_p),
        ("output_counts", c_void_p),
        ("vocab", c_int64),
        ("max_tokens", c_int64),
        ("tokens_at", c_int32),
        ("num_rows", c_int32),
    )


class Sample(Structure):
    _fields_ = (
        ("logits", c_void_p),
        ("vocab", c_int64),
        ("temperature", c_void_p),
        ("keys", c_void_p),
        ("positions", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
        ("scratch", c_void_p),
        ("token_ids", c_void_p),
        ("non_finite", c_void_p),
    )


class Logits(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("width", c_int64),
        ("factor", c_float),
        ("cap", c_float),
    )


ARGUMENTS: dict[Operation, type[Structure]] = {
    Operation.LINEAR: Linear,
    Operation.ATTENTION: Attention,
    Operation.EMBEDDING: Embedding,
    Operation.NORM: Norm,
    Operation.ACTIVATION: Activation,
    Operation.SUM: Sum,
    Operation.ROTARY_STORE: RotaryStore,
    Operation.PACK: Pack,
    Operation.QUERY_SCALE: QueryScale,
    Operation.GATHER_STEP: GatherStep,
    Operation.COMMIT_TOKENS: CommitTokens,
    Operation.SAMPLE: Sample,
    Operation.LOGITS: Logits,
}

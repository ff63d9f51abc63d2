"""What a ModelSpec may describe and the engine, or a backend, does not compute yet. No torch.

A spec grows with what is published, the decoder with what is served: between the two stands this
one list. What is on it is planned, and refused at start; it is never computed as if it were not
there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from server.memory import layer_program as program
from server.memory.backends.record import Backend
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
    ValueNorm,
    WeighInput,
    attend_normalises,
    embedding_program,
    layer_program,
)
from weights.spec import Activation, ModelSpec, NormKind, NormPlacement, ParallelBlock, QkNorm


def unserved_features(spec: ModelSpec) -> tuple[str, ...]:
    """Names, for a message, of what ``spec`` needs and the engine lacks; () where it can serve."""
    return tuple(_unserved(spec))


def _unserved(spec: ModelSpec) -> Iterator[str]:
    norm, attention = spec.norm, spec.attention
    if spec.parallel is not ParallelBlock.NONE and norm.placement is not NormPlacement.PRE:
        yield f"attention and MLP in parallel with norms placed {norm.placement}"
    if not norm.weight and norm.kind is NormKind.RMS:
        yield "RMS norms without weights"
    if attention.qk_norm_after_rotary and not attend_normalises(spec):
        yield "norms behind rotary positions but RMS norms of single heads"
    if attention.query_scale is not None and attention.qk_norm is not QkNorm.NONE:
        yield "normalised queries that are scaled by their position"
    if attention.qk_norm is QkNorm.EACH_HEAD and norm.kind is NormKind.RMS:
        yield "RMS norms with weights of each head's own"
    if attention.latent is not None:
        yield "latent attention"
    if attention.values_are_keys and not attention.value_norm:
        yield "values that are the keys, without a norm of their own"
    if spec.layer_input is not None and not spec.stream_scale:
        yield "inputs of each layer, without a scale of the stream"
    if spec.stream_scale and (
        spec.parallel is not ParallelBlock.NONE
        or norm.placement not in (NormPlacement.PRE, NormPlacement.BOTH)
        or spec.residual_scale != 1.0
    ):
        yield "a scale of the stream in such a block"
    if attention.sinks:
        yield "attention sinks"
    if spec.mlp.activation is Activation.XIELU and spec.mlp.gated:
        yield "a gate with xIELU"
    if spec.experts is not None:
        yield "experts"
    if spec.unembedding_bias and spec.tied_unembedding:
        yield "a bias of logits that use the embedding's table"


def unserved_by(backend: Backend, spec: ModelSpec) -> str | None:
    """What a model that the engine computes lacks on this backend; None where it can run."""
    declined = backend.parts.kernels.declined(operations_of(spec))
    if declined:
        return f"it has no {', '.join(declined)} there"
    heads = tuple(map(spec.layer_attention, spec.kinds_of_layers))
    if len({one.heads for one in heads}) > 1 and not backend.unlike_heads:
        return "its layers have heads of two sizes"
    if spec.num_kv_shared_layers and not backend.unlike_heads:
        return "its last layers read the keys and values of others"
    head_dim, width = max(one.head_dim for one in heads), spec.hidden_size
    if spec.attention.qk_norm is QkNorm.WHOLE:
        width = max(width, spec.attention.query_size)
    if backend.max_head_dim is not None and head_dim > backend.max_head_dim:
        return f"heads of {head_dim} are wider than {backend.max_head_dim}"
    odd = next((one.head_dim for one in heads if one.head_dim % backend.head_dim_multiple), None)
    if odd is not None:
        return f"heads of {odd} are no multiple of {backend.head_dim_multiple}"
    groups = len(layer_groups(spec))
    if backend.max_kv_groups is not None and groups > backend.max_kv_groups:
        return f"its KV cache has {groups} groups, more than {backend.max_kv_groups}"
    if backend.max_width is not None and width > backend.max_width:
        return f"rows of {width} are wider than {backend.max_width}"
    return None


def operations_of(spec: ModelSpec) -> tuple[str, ...]:
    """The operations that serving a model runs, as kernels names them: those of its layers'
    program, and what is done before and behind them."""
    kinds = map(spec.as_layer, spec.kinds_of_layers)
    steps = (*embedding_program(spec), *(step for kind in kinds for step in layer_program(kind)))
    in_layers = (name for step in steps for name in _kernels_of(step, spec))
    return tuple(dict.fromkeys((*_AROUND_LAYERS, *in_layers)))


_AROUND_LAYERS = (
    *("pack_linear", "write_rows", "copy_blocks", "gather_step", "prepare_attention"),
    *("sample", "token_logprobs", "commit_tokens", "count_tokens"),
)


def _kernels_of(step: Operation, spec: ModelSpec) -> tuple[str, ...]:
    match step:
        case Embed():
            return ("embedding",)
        case AddNorm() | Norm() | program.QkNorm():
            return ("add_rms_norm" if spec.norm.kind is NormKind.RMS else "add_layer_norm",)
        case Product():
            return ("linear",)
        case Attend():
            return ("rotary_store_kv", "paged_attention")
        case Activate():
            if spec.mlp.activation is Activation.XIELU:
                return ("xielu",)
            return ("gated_activation" if spec.mlp.gated else "activation",)
        case LayerInputs():
            return ("embedding", "linear", "add_rms_norm")
        case WeighInput():
            return ("activation",)
        case ValueNorm():
            return ("add_rms_norm",)
        case Add() | Scale() | StreamScale() | Clip() | ScaleQueries():
            return ()  # torch's own
    assert_never(step)

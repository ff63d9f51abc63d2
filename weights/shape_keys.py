"""The keys of a shape: what a TOML or JSON document may say about a model. Data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from weights.formats import FORMATS
from weights.spec import (
    Activation,
    NormKind,
    NormPlacement,
    ParallelBlock,
    PositionKind,
    QkNorm,
)

ACTIVATIONS: Mapping[str, Activation] = {kind.value: kind for kind in Activation}
NORMS: Mapping[str, NormKind] = {kind.value: kind for kind in NormKind}
PLACEMENTS: Mapping[str, NormPlacement] = {kind.value: kind for kind in NormPlacement}
PARALLEL: Mapping[str, ParallelBlock] = {kind.value: kind for kind in ParallelBlock}
QK_NORMS: Mapping[str, QkNorm] = {kind.value: kind for kind in QkNorm}
POSITIONS: Mapping[str, PositionKind] = {kind.value: kind for kind in PositionKind}
DTYPES: Mapping[str, str] = {fmt.torch_name: fmt.name for fmt in FORMATS.values()}


@dataclass(frozen=True, slots=True)
class ShapeKey:
    """``form`` is how a value looks; ``default`` what an absent key means, None where it must be
    there."""

    form: str
    default: str | None
    help: str


def _words(table: Mapping[str, object]) -> str:
    return "|".join(table)


SHAPE_KEYS: Mapping[str, ShapeKey] = MappingProxyType(
    {
        "vocab_size": ShapeKey("N", None, "rows of the embedding"),
        "hidden_size": ShapeKey("N", None, "channels of the residual stream"),
        "num_layers": ShapeKey("N", None, "layers"),
        "num_query_heads": ShapeKey("N", None, "query heads of a layer"),
        "num_kv_heads": ShapeKey("N", "num_query_heads", "key-value heads; 1 is multi-query"),
        "head_dim": ShapeKey("N", "hidden_size / num_query_heads", "channels of a head"),
        "global_num_kv_heads": ShapeKey("N", "num_kv_heads", "those of layers without a window"),
        "global_head_dim": ShapeKey("N", "head_dim", "the same"),
        "values_are_keys": ShapeKey("true|false", "false", "these have no projection of values"),
        "value_norm": ShapeKey("true|false", "false", "each head's values are normalised"),
        "stream_scale": ShapeKey("true|false", "false", "each layer scales the stream behind it"),
        "num_kv_shared_layers": ShapeKey("N", "0", "last layers that read others' keys and values"),
        "shared_intermediate_size": ShapeKey("N", "intermediate_size", "of these layers' MLPs"),
        "layer_input_size": ShapeKey("N", "0", "channels of the inputs of each layer"),
        "intermediate_size": ShapeKey("N", None, "inner width of the MLP"),
        "max_positions": ShapeKey("TOKENS", None, "longest context"),
        "dtype": ShapeKey(_words(DTYPES), "bfloat16", "of the published weights"),
        "tied_unembedding": ShapeKey("true|false", "false", "logits use the embedding's table"),
        "activation": ShapeKey(_words(ACTIVATIONS), "silu", "of the MLP"),
        "gated": ShapeKey("true|false", "true", "the MLP has a gate beside up and down"),
        "norm": ShapeKey(_words(NORMS), "rms", "RMS or Layer norm"),
        "norm_bias": ShapeKey("true|false", "true", "Layer norms have biases"),
        "norm_weight": ShapeKey("true|false", "true", "norms have weights, and biases as said"),
        "norm_placement": ShapeKey(
            _words(PLACEMENTS),
            "pre",
            "of a block's input, of the sum, of input and output, or of the output",
        ),
        "parallel": ShapeKey(_words(PARALLEL), "none", "attention and MLP side by side"),
        "qk_norm": ShapeKey(_words(QK_NORMS), "none", "norms of queries and keys"),
        "qkv_bias": ShapeKey("true|false", "false", "queries, keys and values have biases"),
        "output_bias": ShapeKey("true|false", "false", "attention's output has a bias"),
        "mlp_bias": ShapeKey("true|false", "false", "the MLP has biases"),
        "embedding_size": ShapeKey("N", "0", "width of the tables of tokens; 0 is hidden_size"),
        "unembedding_bias": ShapeKey("true|false", "false", "the logits have a bias"),
        "position": ShapeKey(_words(POSITIONS), "rotary", "kind of positions"),
        "position_offset": ShapeKey("N", "0", "rows before the first of a learned table"),
        "rotary_dim": ShapeKey(
            "N", "head_dim, or qk_rope_head_dim", "channels of a head that turn"
        ),
        "rope_theta": ShapeKey("X", "10000", "base of the rotary frequencies"),
        "local_rope_theta": ShapeKey("X", "rope_theta", "the same, of layers with a window"),
        "window": ShapeKey("TOKENS", "0", "how far layers look back; 0 is all the way"),
        "full_every": ShapeKey("N", "0", "every Nth layer has no window; 0 is none"),
        "sinks": ShapeKey("true|false", "false", "a learned score a head that gives no value"),
        "kv_lora_rank": ShapeKey("N", "0", "latent attention: channels that K and V come from"),
        "q_lora_rank": ShapeKey("N", "0", "the same of queries; 0 is as always"),
        "qk_rope_head_dim": ShapeKey("N", "needed with kv_lora_rank", "rotary key of all heads"),
        "v_head_dim": ShapeKey("N", "needed with kv_lora_rank", "channels of a head's values"),
        "attention_soft_cap": ShapeKey("X", "none", "soft cap of attention scores"),
        "logit_soft_cap": ShapeKey("X", "none", "soft cap of logits"),
        "embedding_scale": ShapeKey("X", "1", "multiplies the embedding"),
        "embedding_norm": ShapeKey("true|false", "false", "the embedding is normalised"),
        "num_experts": ShapeKey("N", "0", "experts of a layer; 0 is a plain MLP"),
        "experts_per_token": ShapeKey("N", "needed with num_experts", "chosen for each token"),
        "expert_size": ShapeKey("N", "needed with num_experts", "inner width of one expert"),
        "shared_expert_size": ShapeKey(
            "N", "0", "inner width of the experts that every token passes"
        ),
        "shared_expert_gate": ShapeKey("true|false", "false", "a gate weighs the shared expert"),
        "router_bias": ShapeKey("true|false", "false", "the router's scores have a bias"),
        "num_dense_layers": ShapeKey("N", "0", "first layers that have no experts"),
        "family": ShapeKey("NAME", "shape", "name of the architecture"),
        "source": ShapeKey("TEXT", "none", "where the shape was published"),
        "note": ShapeKey("TEXT", "none", "note that the plan shows"),
    }
)

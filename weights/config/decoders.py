"""What decoders have in common in config.json and in their tensors' names: a family states the
rest. Most published decoders are Llama's block with a fact or two changed, and say so in the
same keys and names. A family's reader calls these functions and gives what is its own; a
default is the one of the family's config class in transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from weights.config.facts import MAX_LAYERS, ConfigReader
from weights.config.family import GELU_NAMES, UNEMBEDDING_TENSOR, Skip, Source
from weights.config.rope import FULL, LLAMA, SLIDING, RopeDefaults, read_rope
from weights.spec import (
    Activation,
    AttentionSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormPlacement,
    NormSpec,
    PositionKind,
    RopeSpec,
)

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    **GELU_NAMES,
    "relu": Activation.RELU,
    "relu2": Activation.RELU2,
}


def read_decoder(
    facts: ConfigReader,
    *,
    family: str,
    attention: AttentionSpec,
    max_positions: int,
    mlp: MlpSpec | None = None,
    norm: NormSpec | None = None,
    rope: RopeDefaults | RopeSpec = LLAMA,
    tied: bool = False,
    bos: int | None = None,
    eos: int | tuple[int, ...] | None = None,
    position: PositionKind = PositionKind.ROTARY,
    hidden_key: str = "hidden_size",
    layers_key: str = "num_hidden_layers",
    positions_key: str = "max_position_embeddings",
    **own: Any,
) -> ModelSpec:
    """A ModelSpec of these parts, with what most config.json files name alike.

    ``max_positions``, ``tied``, ``bos`` and ``eos`` hold where the file is silent. Without an
    ``mlp``, a ``norm`` or a ``rope`` they are Llama's; ``rope`` is what has been read, or the
    defaults to read by. ``own`` are further fields of the spec.
    """
    vocab_size = facts.integer("vocab_size")
    max_positions = facts.integer(positions_key, max_positions, high=1 << 31)
    if position is not PositionKind.ROTARY:
        rope = RopeSpec()
    elif isinstance(rope, RopeDefaults):
        rope = read_rope(
            facts, head_dim=attention.head_dim, max_positions=max_positions, defaults=rope
        )
    first = facts.token_ids("bos_token_id", vocab_size, bos)
    return ModelSpec(
        family=family,
        architecture=facts.architecture,
        vocab_size=vocab_size,
        hidden_size=facts.integer(hidden_key),
        num_layers=num_layers(facts, layers_key),
        attention=attention,
        mlp=read_mlp(facts) if mlp is None else mlp,
        norm=rms_norm(facts) if norm is None else norm,
        position=position,
        max_positions=max_positions,
        rope=rope,
        tied_unembedding=facts.flag("tie_word_embeddings", tied),
        parameter_dtype=facts.parameter_format(),
        bos_token_id=first[0] if first else None,
        eos_token_ids=facts.token_ids("eos_token_id", vocab_size, eos),
        **own,
    )


def either(facts: ConfigReader, *keys: str) -> str:
    """The one of some keys for the same number that the file has; the first where it has none.
    Raises CheckpointError where two contradict each other."""
    given = [key for key in keys if key in facts] or [keys[0]]
    for other in given[1:]:
        if facts.integer(other) != facts.integer(given[0]):
            raise facts.error(other, f"contradicts {given[0]} {facts.integer(given[0])}")
    for key in keys:
        facts.raw(key)
    return given[0]


def num_layers(facts: ConfigReader, key: str = "num_hidden_layers") -> int:
    return facts.integer(key, high=MAX_LAYERS)


def max_positions(facts: ConfigReader, default: int) -> int:
    return facts.integer("max_position_embeddings", default, high=1 << 31)


def read_attention(
    facts: ConfigReader,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    **own: Any,
) -> AttentionSpec:
    """Heads, and a scale of head_dim^-1/2. ``kv_heads`` and ``head_dim`` hold where the file is
    silent; None is as many as query heads, and an equal share of hidden_size. ``own`` are further
    fields of the spec."""
    hidden = facts.integer("hidden_size")
    heads = facts.integer("num_attention_heads", high=1 << 16)
    kv_heads = facts.integer("num_key_value_heads", kv_heads or heads, high=1 << 16)
    if heads % kv_heads:
        raise facts.error(
            "num_attention_heads", f"{heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if "head_dim" not in facts and head_dim is None and hidden % heads:
        raise facts.error(
            "hidden_size", f"{hidden} is not a multiple of num_attention_heads {heads}"
        )
    head_dim = facts.integer("head_dim", head_dim or max(hidden // heads, 1), high=1 << 16)
    return AttentionSpec(
        **{
            "num_query_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": head_dim,
            "scale": head_dim**-0.5,
            **own,
        }
    )


def read_equal_heads(
    facts: ConfigReader,
    *,
    hidden_key: str,
    heads_key: str,
    kv_heads: int | None = None,
    scaled: bool = True,
    **own: Any,
) -> AttentionSpec:
    """Heads that share the hidden size equally, in GPT's keys. Scores are not scaled unless
    ``scaled``; ``own`` are further fields of the spec."""
    hidden, heads = facts.integer(hidden_key), facts.integer(heads_key, high=1 << 16)
    if hidden % heads:
        raise facts.error(hidden_key, f"{hidden} is not a multiple of {heads_key} {heads}")
    head_dim = hidden // heads
    scale = head_dim**-0.5 if scaled else 1.0
    return AttentionSpec(heads, kv_heads or heads, head_dim, scale, **own)


def read_mlp(
    facts: ConfigReader,
    *,
    key: str = "hidden_act",
    default: str = "silu",
    gated: bool = True,
    bias: bool = False,
) -> MlpSpec:
    return MlpSpec(
        intermediate_size=facts.integer("intermediate_size"),
        activation=facts.choice(key, ACTIVATIONS, default),
        gated=gated,
        bias=bias,
    )


def read_gelu_tanh_mlp(facts: ConfigReader) -> MlpSpec:
    """Gemma's first files say "gelu" and mean the one by tanh; a newer key beside it holds."""
    key = "hidden_activation" if "hidden_activation" in facts else "hidden_act"
    mlp = read_mlp(facts, key=key, default="gelu_pytorch_tanh")
    if facts.raw("hidden_act") == "gelu" and mlp.activation is Activation.GELU_ERF:
        return replace(mlp, activation=Activation.GELU_TANH)
    return mlp


def rms_norm(
    facts: ConfigReader,
    epsilon: float = 1e-6,
    placement: NormPlacement = NormPlacement.PRE,
    **own: Any,
) -> NormSpec:
    return NormSpec(NormKind.RMS, facts.number("rms_norm_eps", epsilon, high=1.0), placement, **own)


def read_windows(
    facts: ConfigReader,
    *,
    slides: Callable[[int], bool],
    default: int | None = None,
    used: bool = True,
) -> tuple[int, ...]:
    """ModelSpec.windows from ``layer_types``, or where the file has none from ``slides``, asked of
    each layer's number. ``default`` is the window where the file is silent; a null is none.
    Unless ``used``, the window of the file is none."""
    layers = num_layers(facts)
    key = "sliding_window"
    if used and (key in facts or (default is not None and not facts.is_null(key))):
        window = facts.integer(key, default, high=1 << 31)
    else:
        facts.raw(key)
        window = 0
    types = facts.raw("layer_types")
    if types is None:
        types = [SLIDING if window and slides(layer) else FULL for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise facts.error("layer_types", f"must be a list of {layers} names, one a layer")
    for name in types:
        if name not in (FULL, SLIDING):
            raise facts.error("layer_types", f"names {name!r}; served: {FULL}, {SLIDING}")
    if SLIDING in types and not window:
        raise facts.error("layer_types", f"names {SLIDING}, and sliding_window is not given")
    windows = tuple(window if name == SLIDING else 0 for name in types)
    return windows if any(windows) else ()


def read_upper_windows(facts: ConfigReader) -> tuple[int, ...]:
    """Qwen's: where ``use_sliding_window``, layers from ``max_window_layers`` on have a window."""
    first = facts.integer("max_window_layers", 28, low=0)
    used = facts.flag("use_sliding_window", False)
    return read_windows(facts, slides=lambda layer: layer >= first, default=4096, used=used)


def linear(theirs: str, ours: str) -> tuple[Source, Source]:
    """Weight and bias of one matrix, or of the bare names of a norm."""
    return (
        Source(f"{theirs}.weight", (f"{ours}.weight",)),
        Source(f"{theirs}.bias", (f"{ours}.bias",)),
    )


GPT_SKIPS = (
    Skip("transformer.h.{i}.attn.bias", "the causal mask is computed"),
    Skip("transformer.h.{i}.attn.masked_bias", "the causal mask is computed"),
    Skip("transformer.h.{i}.attn.attention.bias", "the causal mask is computed"),
    Skip("transformer.h.{i}.attn.attention.masked_bias", "the causal mask is computed"),
    Skip("transformer.position_ids", "positions are counted"),
    Skip("transformer.embeddings.position_ids", "positions are counted"),
)


def in_layer(theirs: str, *ours: str, layers: str = "model.layers") -> tuple[Source, Source]:
    """Weight and bias of one matrix or norm of layer ``{i}``; of several of ours, stacked, where a
    checkpoint fuses them."""
    return (
        Source(
            f"{layers}.{{i}}.{theirs}.weight",
            tuple(f"layers.{{i}}.{one}.weight" for one in ours),
        ),
        Source(
            f"{layers}.{{i}}.{theirs}.bias",
            tuple(f"layers.{{i}}.{one}.bias" for one in ours),
        ),
    )


def heads_in_layer(theirs: str, layers: str) -> tuple[Source, Source]:
    """Weight and bias of queries, keys and values, fused by key-value head."""
    weight, bias = in_layer(
        theirs, "attention.query", "attention.key", "attention.value", layers=layers
    )
    return replace(weight, by_kv_head=True), replace(bias, by_kv_head=True)


def conv1d(theirs: str, *ours: str) -> tuple[Source, Source]:
    """As in_layer, of GPT's matrices that are published as [in, out], transformers' Conv1D."""
    weight, bias = in_layer(theirs, *ours, layers="transformer.h")
    return replace(weight, transposed=True), bias


def names(*of_layers: Source) -> tuple[Source, ...]:
    """The names of a whole decoder whose layers have these."""
    return (
        Source("model.embed_tokens.weight", ("embedding.weight",)),
        *of_layers,
        *linear("model.norm", "final_norm"),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
    )


ATTENTION = (
    *in_layer("self_attn.q_proj", "attention.query"),
    *in_layer("self_attn.k_proj", "attention.key"),
    *in_layer("self_attn.v_proj", "attention.value"),
    *in_layer("self_attn.o_proj", "attention.output"),
)
QK_NORMS = (
    *in_layer("self_attn.q_norm", "attention.query_norm"),
    *in_layer("self_attn.k_norm", "attention.key_norm"),
)
UP_DOWN = (*in_layer("mlp.up_proj", "mlp.up"), *in_layer("mlp.down_proj", "mlp.down"))
GATED_MLP = (*in_layer("mlp.gate_proj", "mlp.gate"), *UP_DOWN)
FUSED_MLP = (
    *in_layer("mlp.gate_up_proj", "mlp.gate", "mlp.up"),
    *in_layer("mlp.down_proj", "mlp.down"),
)
INPUT_NORMS = (
    *in_layer("input_layernorm", "attention_norm"),
    *in_layer("post_attention_layernorm", "mlp_norm"),
)
OUTPUT_NORMS = (
    *in_layer("post_attention_layernorm", "attention_output_norm"),
    *in_layer("post_feedforward_layernorm", "mlp_output_norm"),
)
FOUR_NORMS = (
    *in_layer("input_layernorm", "attention_norm"),
    *in_layer("post_attention_layernorm", "attention_output_norm"),
    *in_layer("pre_feedforward_layernorm", "mlp_norm"),
    *in_layer("post_feedforward_layernorm", "mlp_output_norm"),
)
LLAMA_NAMES = names(*INPUT_NORMS, *ATTENTION, *GATED_MLP)

SKIPS = (
    Skip("model.layers.{i}.self_attn.rotary_emb.inv_freq", "rotary frequencies are computed"),
    Skip("model.rotary_emb.inv_freq", "rotary frequencies are computed"),
    Skip("model.position_ids", "positions are counted"),
    Skip("model.embeddings.position_ids", "positions are counted"),
)

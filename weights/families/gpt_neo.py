"""GPT-Neo (Black et al. 2021): GPT-2's block with scores that are not scaled, and a window in every
other layer."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import UNEMBEDDING_TENSOR, Family, Source
from weights.config.keys import words
from weights.spec import MlpSpec, ModelSpec, NormKind, NormSpec, PositionKind


def _read(facts: ConfigReader) -> ModelSpec:
    hidden = facts.integer("hidden_size")
    return decoders.read_decoder(
        facts,
        family="gpt_neo",
        attention=decoders.read_equal_heads(
            facts,
            hidden_key="hidden_size",
            heads_key="num_heads",
            scaled=False,
            output_bias=True,
        ),
        mlp=MlpSpec(
            intermediate_size=facts.integer("intermediate_size", 4 * hidden),
            activation=facts.choice("activation_function", decoders.ACTIVATIONS, "gelu_new"),
            gated=False,
            bias=True,
        ),
        norm=NormSpec(NormKind.LAYER, facts.number("layer_norm_epsilon", 1e-5, high=1.0)),
        position=PositionKind.LEARNED,
        max_positions=2048,
        windows=_windows(facts),
        tied=True,
        layers_key="num_layers",
        bos=50256,
        eos=50256,
    )


def _windows(facts: ConfigReader) -> tuple[int, ...]:
    """``attention_types`` is [[names, times], ...]; ``attention_layers`` says the same, a name a
    layer."""
    layers, window = decoders.num_layers(facts, "num_layers"), facts.integer("window_size", 256)
    types, names = facts.raw("attention_types"), facts.raw("attention_layers")
    if names is None:
        names = (
            ["global", "local"] * ((layers + 1) // 2) if types is None else _spread(facts, types)
        )
        names = names[:layers] if types is None else names
    if not isinstance(names, list) or len(names) != layers or {*names} - {"global", "local"}:
        raise facts.error("attention_types", f"must come to {layers} layers, global or local")
    windows = tuple(window if name == "local" else 0 for name in names)
    return windows if any(windows) else ()


def _spread(facts: ConfigReader, types: object) -> list[str]:
    names: list[str] = []
    for entry in types if isinstance(types, list) else [None]:
        match entry:
            case [list(some), int(times)] if 0 <= times <= 1 << 12 and len(some) <= 1 << 12:
                names += [str(name) for name in some] * times
            case _:
                raise facts.error("attention_types", "must be a list of [names, times]")
        if len(names) > 1 << 12:
            raise facts.error("attention_types", "has more layers than any model")
    return names


def _layer(theirs: str, ours: str) -> tuple[Source, Source]:
    return decoders.in_layer(theirs, ours, layers="transformer.h")


FAMILY = Family(
    name="gpt_neo",
    architecture="GPTNeoForCausalLM",
    other_names=("GPTNeoModel",),
    model_type="gpt_neo",
    prefix="transformer.",
    sources=(
        Source("transformer.wte.weight", ("embedding.weight",)),
        Source("transformer.wpe.weight", ("position_embedding.weight",)),
        *_layer("ln_1", "attention_norm"),
        *_layer("attn.attention.q_proj", "attention.query"),
        *_layer("attn.attention.k_proj", "attention.key"),
        *_layer("attn.attention.v_proj", "attention.value"),
        *_layer("attn.attention.out_proj", "attention.output"),
        *_layer("ln_2", "mlp_norm"),
        *_layer("mlp.c_fc", "mlp.up"),
        *_layer("mlp.c_proj", "mlp.down"),
        *decoders.linear("transformer.ln_f", "final_norm"),
        Source(UNEMBEDDING_TENSOR, ("unembedding.weight",)),
    ),
    skips=decoders.GPT_SKIPS,
    harmless=words(
        """
        resid_dropout embed_dropout classifier_dropout summary_type summary_use_proj
        summary_activation summary_proj_to_labels summary_first_dropout gradient_checkpointing
        """
    ),
    read=_read,
    sizes={"vocab_size": 512, "hidden_size": 64, "num_layers": 8, "num_heads": 4},
)

"""EXAONE 4 (arXiv 2507.11407): outputs are normalised, not inputs, and so are query and key heads;
larger ones have windows in three of four layers and turn in these alone."""

from __future__ import annotations

from weights.config import decoders
from weights.config.facts import ConfigReader
from weights.config.family import Family
from weights.spec import ModelSpec, NormPlacement, QkNorm


def _read(facts: ConfigReader) -> ModelSpec:
    attention = decoders.read_attention(facts, qk_norm=QkNorm.HEAD)
    every = _pattern(facts)
    windows = decoders.read_windows(facts, slides=lambda i: (i + 1) % every != 0, default=4096)
    return decoders.read_decoder(
        facts,
        family="exaone4",
        attention=attention,
        norm=decoders.rms_norm(facts, 1e-5, NormPlacement.OUTPUT),
        max_positions=2048,
        # Without a window in the file every layer turns.
        rotary_layers=tuple(window > 0 for window in windows),
        windows=windows,
        bos=0,
        eos=2,
    )


def _pattern(facts: ConfigReader) -> int:
    """One layer in so many sees all: a number, or a text such as "LLLG"."""
    given = facts.raw("sliding_window_pattern")
    if isinstance(given, str):
        if not given or set(given[:-1]) - {"L"} or given[-1] != "G":
            raise facts.error(
                "sliding_window_pattern", f"is {given[:80]!r}; served: LLLG and alike"
            )
        return len(given)
    # Without a window the number has no meaning, and transformers writes 0.
    return facts.integer("sliding_window_pattern", 4, low=0) or 1


FAMILY = Family(
    name="exaone4",
    architecture="Exaone4ForCausalLM",
    other_names=("Exaone4Model",),
    model_type="exaone4",
    prefix="model.",
    sources=decoders.names(
        *decoders.ATTENTION, *decoders.QK_NORMS, *decoders.OUTPUT_NORMS, *decoders.GATED_MLP
    ),
    skips=decoders.SKIPS,
    harmless=frozenset(),
    read=_read,
)

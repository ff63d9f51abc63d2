"""Reads rotary embedding facts: ``rope_theta`` + ``rope_scaling``, or ``rope_parameters``.

The arithmetic of each scaling is the kernels'; here only its fields are found and given the
defaults of the reference implementation. Sources: linear (kaiokendev 2023), dynamic (NTK-aware,
emozilla 2023), llama3 (Llama 3.1 release), yarn (Peng et al. 2023, arXiv 2309.00071).
"""

from __future__ import annotations

import math

from weights.families.facts import ConfigReader
from weights.families.keys import words
from weights.spec import RopeScaling, RopeSpec

_KINDS = {
    "default": RopeScaling.NONE,
    "linear": RopeScaling.LINEAR,
    "dynamic": RopeScaling.DYNAMIC,
    "llama3": RopeScaling.LLAMA3,
    "yarn": RopeScaling.YARN,
}
_MAX_POSITIONS = 1 << 31

# Keys that some scaling reads; beside another scaling they are left unread, as the reference does.
_KNOWN = words(
    """
    type rope_type rope_theta factor original_max_position_embeddings low_freq_factor
    high_freq_factor beta_fast beta_slow attention_factor mscale mscale_all_dim truncate
    finetuned
    """
)


def read_rope(facts: ConfigReader, *, head_dim: int, max_positions: int) -> RopeSpec:
    """RopeSpec of a model whose heads are rotated whole. Raises CheckpointError naming the key."""
    if head_dim % 2:
        raise facts.error("head_dim", f"is {head_dim}; a rotary embedding needs an even one")
    facts.only("partial_rotary_factor", 1, "this architecture rotates whole heads")
    facts.only("rope_interleaved", False, "pairs of channels lie half a head apart")
    scaling = _scaling_object(facts)
    theta = _theta(facts, scaling)
    kind = _kind(scaling)
    if scaling is None or kind is RopeScaling.NONE:
        return RopeSpec(theta=theta, dim=head_dim, original_max_positions=max_positions)
    if kind is RopeScaling.DYNAMIC and head_dim <= 2:
        raise facts.error("head_dim", f"is {head_dim}; dynamic rope scaling needs more than 2")
    original = _original_max_positions(facts, scaling, kind, max_positions)
    factor = _factor(scaling, kind, max_positions / original)
    if kind is RopeScaling.LLAMA3:
        return _llama3(scaling, theta, head_dim, factor, original)
    if kind is RopeScaling.YARN:
        return _yarn(scaling, theta, head_dim, factor, original)
    return RopeSpec(
        theta=theta,
        dim=head_dim,
        scaling=kind,
        factor=factor,
        original_max_positions=original,
    )


def _scaling_object(facts: ConfigReader) -> ConfigReader | None:
    """The one object that describes the scaling, whichever of the two names it bears."""
    older, newer = facts.raw("rope_scaling"), facts.raw("rope_parameters")
    if older and newer and older != newer:
        raise facts.error("rope_scaling", "and rope_parameters disagree; keep one of them")
    scaling = facts.nested("rope_scaling" if older else "rope_parameters")
    if scaling is None:
        return None
    scaling.only("partial_rotary_factor", 1, "this architecture rotates whole heads")
    scaling.finish_closed(_KNOWN)
    return scaling


def _theta(facts: ConfigReader, scaling: ConfigReader | None) -> float:
    theta = facts.number("rope_theta", 10000.0, above=1.0)
    if scaling is None or "rope_theta" not in scaling:
        return theta
    inner = scaling.number("rope_theta", above=1.0)
    if "rope_theta" in facts and inner != theta:
        raise scaling.error("rope_theta", f"is {inner:g} but rope_theta is {theta:g}; keep one")
    return inner


def _kind(scaling: ConfigReader | None) -> RopeScaling:
    if scaling is None:
        return RopeScaling.NONE
    if "type" not in scaling:
        return scaling.choice("rope_type", _KINDS, "default")
    kind = scaling.choice("type", _KINDS, "default")
    if "rope_type" in scaling and scaling.choice("rope_type", _KINDS, "default") is not kind:
        raise scaling.error("rope_type", "and type disagree; keep one of them")
    return kind


def _original_max_positions(
    facts: ConfigReader, scaling: ConfigReader, kind: RopeScaling, max_positions: int
) -> int:
    """The trained context. Linear and dynamic scaling know only max_position_embeddings; for the
    others a key beside the rope object wins over the one inside it."""
    key = "original_max_position_embeddings"
    if kind not in (RopeScaling.LLAMA3, RopeScaling.YARN):
        return max_positions
    if key in facts:
        return facts.integer(key, high=_MAX_POSITIONS)
    return scaling.integer(key, max_positions, high=_MAX_POSITIONS)


def _factor(scaling: ConfigReader, kind: RopeScaling, ratio: float) -> float:
    if kind is RopeScaling.YARN and "factor" not in scaling:
        scaling.raw("factor")
        if ratio < 1.0:
            raise scaling.error("factor", "is missing and the context is shorter than trained")
        return ratio
    factor = scaling.number("factor")
    if factor < 1.0:
        raise scaling.error("factor", f"is {factor:g}; a context can only be stretched: at least 1")
    return factor


def _llama3(
    scaling: ConfigReader, theta: float, dim: int, factor: float, original: int
) -> RopeSpec:
    low = scaling.number("low_freq_factor")
    high = scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.error("high_freq_factor", f"is {high:g}, not above low_freq_factor {low:g}")
    return RopeSpec(
        theta=theta,
        dim=dim,
        scaling=RopeScaling.LLAMA3,
        factor=factor,
        original_max_positions=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(scaling: ConfigReader, theta: float, dim: int, factor: float, original: int) -> RopeSpec:
    beta_fast = scaling.number("beta_fast", 32.0)
    beta_slow = scaling.number("beta_slow", 1.0)
    if beta_fast < beta_slow:
        raise scaling.error("beta_fast", f"is {beta_fast:g}, below beta_slow {beta_slow:g}")
    return RopeSpec(
        theta=theta,
        dim=dim,
        scaling=RopeScaling.YARN,
        factor=factor,
        original_max_positions=original,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        attention_factor=_yarn_attention_factor(scaling, factor),
        truncate=scaling.flag("truncate", True),
    )


def _yarn_attention_factor(scaling: ConfigReader, factor: float) -> float:
    """Given, or from the pair mscale and mscale_all_dim (DeepSeek), or 0.1 ln(factor) + 1."""
    if "attention_factor" in scaling:
        return scaling.number("attention_factor")

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    if "mscale" in scaling and "mscale_all_dim" in scaling:
        mscale = scaling.number("mscale", above=-1e-9)
        all_dim = scaling.number("mscale_all_dim", above=-1e-9)
        if mscale and all_dim:
            return temperature(mscale) / temperature(all_dim)
    return temperature(1.0)

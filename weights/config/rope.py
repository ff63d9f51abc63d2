"""Reads rotary embedding facts: ``rope_theta`` + ``rope_scaling``, or ``rope_parameters``.

The arithmetic of each scaling is the kernels'; here only its fields are found and given the
defaults of the reference implementation. Sources: linear (kaiokendev 2023), dynamic (NTK-aware,
emozilla 2023), llama3 (Llama 3.1 release), yarn (Peng et al. 2023, arXiv 2309.00071).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from weights.config.facts import ConfigReader
from weights.config.keys import words
from weights.spec import RopeScaling, RopeSpec

KINDS = {
    "default": RopeScaling.NONE,
    "linear": RopeScaling.LINEAR,
    "dynamic": RopeScaling.DYNAMIC,
    "llama3": RopeScaling.LLAMA3,
    "yarn": RopeScaling.YARN,
    "longrope": RopeScaling.LONGROPE,
    "su": RopeScaling.LONGROPE,  # its first name
    "proportional": RopeScaling.PROPORTIONAL,
}
_MAX_POSITIONS = 1 << 31
# transformers' names of layers that see all and of layers with a window.
FULL, SLIDING = "full_attention", "sliding_attention"

# Keys that some scaling reads; beside another scaling they are left unread, as the reference does.
_KNOWN = words(
    """
    type rope_type rope_theta factor original_max_position_embeddings low_freq_factor
    high_freq_factor beta_fast beta_slow attention_factor mscale mscale_all_dim truncate
    finetuned short_factor long_factor partial_rotary_factor
    """
)


@dataclass(frozen=True, slots=True)
class RopeDefaults:
    """What a family's rotary embedding is where config.json is silent.

    ``partial`` is the part of each head's channels that turn, None where no file may say another
    than all of them; ``kinds`` are the names that a scaling may have. With ``alpha`` a dynamic
    scaling that names one stretches theta by it, once for all lengths (NTK-aware, bloc97 2023).
    ``own`` are keys of the object that the family reads itself.
    """

    theta: float = 10000.0
    partial: float | None = None
    interleaved: bool = False
    kinds: Mapping[str, RopeScaling] = field(default_factory=lambda: KINDS)
    alpha: bool = False
    own: frozenset[str] = frozenset()


LLAMA = RopeDefaults()


def read_rope(
    facts: ConfigReader,
    *,
    head_dim: int,
    max_positions: int,
    defaults: RopeDefaults = LLAMA,
) -> RopeSpec:
    """The RopeSpec of every layer that turns. Raises CheckpointError naming the key."""
    return _rope(facts, scaling_object(facts, defaults), head_dim, max_positions, defaults)


def read_ropes(
    facts: ConfigReader,
    *,
    head_dim: int,
    max_positions: int,
    defaults: RopeDefaults,
    local_theta_key: str | None = None,
    local_theta: float = 10000.0,
    local_head_dim: int | None = None,
) -> tuple[RopeSpec, RopeSpec]:
    """(of layers that see all, of layers with a window).

    The newer form of config.json has an object for each in ``rope_parameters``. In the older one
    ``rope_scaling`` is the former's alone, and the latter turn by ``local_theta_key``, or by the
    same theta where a family has no such key. ``local_head_dim`` is that of layers with a window
    where it is another.
    """
    by_type = facts.raw("rope_parameters")
    if isinstance(by_type, dict) and {FULL, SLIDING} & by_type.keys():
        facts.only("rope_scaling", None, "rope_parameters says it for each kind of layer")
        outer = facts.nested("rope_parameters")
        if outer is None:
            raise facts.error("rope_parameters", "must be an object")
        inner = [_checked(outer.nested(kind), defaults) for kind in (FULL, SLIDING)]
        outer.finish_closed(frozenset())
        whole, local = inner
    else:
        whole, local = scaling_object(facts, defaults), None
    rope = _rope(facts, whole, head_dim, max_positions, defaults)
    if local is None:
        theta = rope.theta
        if local_theta_key is not None:
            theta = facts.number(local_theta_key, local_theta, above=1.0)
        return rope, RopeSpec(
            theta, rope.dim, rope.interleaved, original_max_positions=max_positions
        )
    if local_theta_key is not None:
        facts.only(local_theta_key, None, "rope_parameters says it for each kind of layer")
        defaults = replace(defaults, theta=local_theta)
    return rope, _rope(facts, local, local_head_dim or head_dim, max_positions, defaults)


def _rope(
    facts: ConfigReader,
    scaling: ConfigReader | None,
    head_dim: int,
    max_positions: int,
    defaults: RopeDefaults,
) -> RopeSpec:
    proportion = 1.0
    if scaling is not None and _kind(scaling, defaults.kinds) is RopeScaling.PROPORTIONAL:
        proportion = scaling.number("partial_rotary_factor", 1.0, high=1.0)
        dim = _dim(facts, None, head_dim, None)
    else:
        dim = _dim(facts, scaling, head_dim, defaults.partial)
    facts.only("rope_interleaved", defaults.interleaved, "so this architecture pairs its channels")
    theta = _theta(facts, scaling, defaults.theta)
    kind = _kind(scaling, defaults.kinds)
    plain = RopeSpec(theta, dim, defaults.interleaved, original_max_positions=max_positions)
    if scaling is None or kind is RopeScaling.NONE:
        return plain
    if kind is RopeScaling.DYNAMIC and dim <= 2:
        raise facts.error("head_dim", f"is {head_dim}; dynamic rope scaling needs more than 2")
    if kind is RopeScaling.DYNAMIC and defaults.alpha and "alpha" in scaling:
        return replace(plain, theta=theta * scaling.number("alpha") ** (dim / (dim - 2)))
    original = _original_max_positions(facts, scaling, kind, max_positions)
    factor = _factor(scaling, kind, max_positions / original)
    scaled = replace(plain, scaling=kind, factor=factor, original_max_positions=original)
    if kind is RopeScaling.PROPORTIONAL:
        return replace(scaled, proportion=proportion)
    if kind is RopeScaling.LLAMA3:
        return _llama3(scaling, scaled)
    if kind is RopeScaling.YARN:
        return _yarn(scaling, scaled)
    if kind is RopeScaling.LONGROPE:
        return _longrope(scaling, scaled)
    return scaled


def _dim(
    facts: ConfigReader, scaling: ConfigReader | None, head_dim: int, partial: float | None
) -> int:
    """Channels of a head that turn."""
    key, whole = "partial_rotary_factor", "this architecture rotates whole heads"
    if partial is None:
        for reader in (facts, scaling):
            if reader is not None:
                reader.only(key, 1, whole)
        dim = head_dim
    else:
        part = facts.number(key, partial, high=1.0)
        if scaling is not None and key in scaling:
            inner = scaling.number(key, high=1.0)
            if key in facts and inner != part:
                raise scaling.error(key, f"is {inner:g} but {key} is {part:g}; keep one")
            part = inner
        dim = int(head_dim * part)
    if dim % 2 or not dim:
        turned = "" if dim == head_dim else f", of which {dim} turn"
        raise facts.error(
            "head_dim", f"is {head_dim}{turned}; a rotary embedding needs an even one"
        )
    return dim


def scaling_object(facts: ConfigReader, defaults: RopeDefaults) -> ConfigReader | None:
    """The one object that describes the scaling, whichever of the two names it bears."""
    older, newer = facts.raw("rope_scaling"), facts.raw("rope_parameters")
    if older and newer and older != newer:
        raise facts.error("rope_scaling", "and rope_parameters disagree; keep one of them")
    return _checked(facts.nested("rope_scaling" if older else "rope_parameters"), defaults)


def _checked(scaling: ConfigReader | None, defaults: RopeDefaults) -> ConfigReader | None:
    if scaling is not None:
        proportional = _kind(scaling, defaults.kinds) is RopeScaling.PROPORTIONAL
        if defaults.partial is None and not proportional:
            scaling.only("partial_rotary_factor", 1, "this architecture rotates whole heads")
        alpha = {"alpha"} if defaults.alpha else set[str]()
        scaling.finish_closed(_KNOWN | defaults.own | alpha)
    return scaling


def _theta(facts: ConfigReader, scaling: ConfigReader | None, default: float) -> float:
    theta = facts.number("rope_theta", default, above=1.0)
    if scaling is None or "rope_theta" not in scaling:
        return theta
    inner = scaling.number("rope_theta", above=1.0)
    if "rope_theta" in facts and inner != theta:
        raise scaling.error("rope_theta", f"is {inner:g} but rope_theta is {theta:g}; keep one")
    return inner


def _kind(scaling: ConfigReader | None, kinds: Mapping[str, RopeScaling]) -> RopeScaling:
    if scaling is None:
        return RopeScaling.NONE
    if "type" not in scaling:
        return scaling.choice("rope_type", kinds, "default")
    kind = scaling.choice("type", kinds, "default")
    if "rope_type" in scaling and scaling.choice("rope_type", kinds, "default") is not kind:
        raise scaling.error("rope_type", "and type disagree; keep one of them")
    return kind


def _original_max_positions(
    facts: ConfigReader, scaling: ConfigReader, kind: RopeScaling, max_positions: int
) -> int:
    """The trained context. Linear and dynamic scaling know only max_position_embeddings; for the
    others a key beside the rope object wins over the one inside it."""
    key = "original_max_position_embeddings"
    if kind not in (RopeScaling.LLAMA3, RopeScaling.YARN, RopeScaling.LONGROPE):
        return max_positions
    if key in facts:
        return facts.integer(key, high=_MAX_POSITIONS)
    return scaling.integer(key, max_positions, high=_MAX_POSITIONS)


def _factor(scaling: ConfigReader, kind: RopeScaling, ratio: float) -> float:
    if kind in (RopeScaling.YARN, RopeScaling.LONGROPE) and "factor" not in scaling:
        scaling.raw("factor")
        if ratio < 1.0:
            raise scaling.error("factor", "is missing and the context is shorter than trained")
        return ratio
    factor = scaling.number("factor", 1.0 if kind is RopeScaling.PROPORTIONAL else None)
    if factor < 1.0:
        raise scaling.error("factor", f"is {factor:g}; a context can only be stretched: at least 1")
    return factor


def _llama3(scaling: ConfigReader, rope: RopeSpec) -> RopeSpec:
    low = scaling.number("low_freq_factor")
    high = scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.error("high_freq_factor", f"is {high:g}, not above low_freq_factor {low:g}")
    return replace(rope, low_freq_factor=low, high_freq_factor=high)


def _yarn(scaling: ConfigReader, rope: RopeSpec) -> RopeSpec:
    beta_fast = scaling.number("beta_fast", 32.0)
    beta_slow = scaling.number("beta_slow", 1.0)
    if beta_fast < beta_slow:
        raise scaling.error("beta_fast", f"is {beta_fast:g}, below beta_slow {beta_slow:g}")
    return replace(
        rope,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        attention_factor=_yarn_attention_factor(scaling, rope.factor),
        truncate=scaling.flag("truncate", True),
    )


def _longrope(scaling: ConfigReader, rope: RopeSpec) -> RopeSpec:
    """Each pair of channels has a factor of its own: one list up to the original context, one for
    a longer one (Ding et al. 2024, arXiv 2402.13753)."""
    if "attention_factor" in scaling:
        attention_factor = scaling.number("attention_factor")
    elif rope.factor <= 1.0:
        attention_factor = 1.0
    else:
        stretch = math.log(rope.factor) / math.log(rope.original_max_positions)
        attention_factor = math.sqrt(1 + stretch)
    return replace(
        rope,
        short_factors=scaling.numbers("short_factor", rope.dim // 2),
        long_factors=scaling.numbers("long_factor", rope.dim // 2),
        attention_factor=attention_factor,
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

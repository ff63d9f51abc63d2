"""The table of rotary angles, with every scaling of its frequencies; and the slopes of ALiBi.

Rotary embedding: Su et al. 2021, arXiv 2104.09864. A pair of channels i turns by
``position * frequency[i]``, where ``frequency[i] = theta ** (-2 i / dim)`` before scaling. The
arithmetic is in float32, step by step as published checkpoints were trained with it: at position
100,000 an angle computed in float64 differs from theirs in the third decimal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SCALINGS = ("none", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")


def rotary_table(
    *,
    dim: int,
    max_positions: int,
    theta: float,
    scaling: str = "none",
    factor: float = 1.0,
    original_max_positions: int = 0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    truncate: bool = True,
    short_factors: Sequence[float] = (),
    long_factors: Sequence[float] = (),
    proportion: float = 1.0,
) -> Tensor:
    """cos_sin [max_positions, dim] float32: the cosines of dim/2 pairs, then their sines.

    - none: the frequencies as they are.
    - linear: every frequency divided by ``factor`` (positions interpolated).
    - dynamic: theta grown for the longest context (NTK-aware); fixed here from ``max_positions``
      against ``original_max_positions``, so that a server's angles do not move while it runs.
    - llama3: long waves divided by ``factor``, short ones kept, a blend between (Llama 3.1).
    - yarn: as llama3 in spirit, the blend set by rotations within the original context, and both
      cosines and sines multiplied by the attention factor, whose default is
      0.1 ln(factor) + 1 (Peng et al. 2023, arXiv 2309.00071).
    - longrope: each frequency divided by its own of ``short_factors``, or of ``long_factors`` where
      ``max_positions`` exceeds ``original_max_positions``, and both cosines and sines multiplied by
      ``attention_factor`` (Ding et al. 2024, arXiv 2402.13753).
    - proportional: the first ``proportion`` of the pairs turn by the frequencies that they have
      among all dim/2, divided by ``factor``; the others by none (Gemma 4).

    Raises ValueError for a size or a factor out of range and for an unknown scaling.
    """
    _check(dim, max_positions, theta, scaling, factor, original_max_positions)
    base = theta
    if scaling == "dynamic":
        length = max(max_positions, original_max_positions)
        stretch = factor * length / original_max_positions - (factor - 1)
        base = theta * stretch ** (dim / (dim - 2))
    frequencies = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    magnitude = 1.0
    if scaling in ("linear", "proportional"):
        frequencies = frequencies / factor
    if scaling == "proportional":
        frequencies[int(proportion * dim // 2) :] = 0
    elif scaling == "llama3":
        frequencies = _llama3(
            frequencies, factor, original_max_positions, low_freq_factor, high_freq_factor
        )
    elif scaling == "yarn":
        low, high = _yarn_range(dim, theta, original_max_positions, beta_fast, beta_slow, truncate)
        frequencies = _yarn(frequencies, factor, low, high)
        magnitude = _yarn_magnitude(factor) if attention_factor is None else attention_factor
    elif scaling == "longrope":
        factors = long_factors if max_positions > original_max_positions else short_factors
        if len(factors) != dim // 2:
            raise ValueError(f"there are {len(factors)} longrope factors for {dim // 2} pairs")
        frequencies = 1.0 / (torch.tensor(factors) / frequencies)
        magnitude = 1.0 if attention_factor is None else attention_factor
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos() * magnitude, angles.sin() * magnitude), dim=1)


def alibi_slopes(num_heads: int, max_bias: float = 8.0) -> Tensor:
    """[num_heads] float32, for AttentionFeatures (Press et al. 2022, arXiv 2108.12409).

    Of n heads, n a power of two, head h falls by ``2 ** (-max_bias (h + 1) / n)`` for each
    position. Another number of heads has the slopes of the power of two below it, and then every
    other one of twice as many, as published checkpoints were trained. Raises ValueError for a
    number out of range.
    """
    if num_heads < 1 or not max_bias > 0:
        raise ValueError(f"num_heads is {num_heads} and max_bias {max_bias}; both must be above 0")
    lower = 1 << (num_heads.bit_length() - 1)
    steps = torch.cat(
        (torch.arange(1, lower + 1), torch.arange(num_heads - lower).float() + 0.5)
    ).double()
    return torch.exp2(steps * (-max_bias / lower)).float()


def _check(
    dim: int, max_positions: int, theta: float, scaling: str, factor: float, original: int
) -> None:
    if scaling not in SCALINGS:
        raise ValueError(f"scaling is {scaling!r}; it must be one of {', '.join(SCALINGS)}")
    if dim < 2 or dim % 2:
        raise ValueError(f"dim is {dim}; it must be even and at least 2")
    if max_positions < 1:
        raise ValueError(f"max_positions is {max_positions}; it must be at least 1")
    if not theta > 0:
        raise ValueError(f"theta is {theta}; it must be above 0")
    if scaling != "none" and not factor > 0:
        raise ValueError(f"factor is {factor}; it must be above 0")
    if scaling in ("dynamic", "llama3", "yarn", "longrope") and original < 1:
        raise ValueError(
            f"original_max_positions is {original}; {scaling} scaling needs at least 1"
        )
    if scaling == "dynamic" and dim < 4:
        raise ValueError(f"dim is {dim}; dynamic scaling needs at least 4")


def _llama3(frequencies: Tensor, factor: float, original: int, low: float, high: float) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    out = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    between = (wavelengths <= original / low) & (wavelengths >= original / high)
    return torch.where(between, blended, out)


def _yarn_range(
    dim: int, theta: float, original: int, beta_fast: float, beta_slow: float, truncate: bool
) -> tuple[float, float]:
    """The channels that turn beta_fast and beta_slow times within the original context."""

    def channel(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(beta_fast), channel(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, dim - 1)


def _yarn(frequencies: Tensor, factor: float, low: float, high: float) -> Tensor:
    if low == high:
        high += 0.001  # a step instead of a division by zero
    channels = torch.arange(frequencies.shape[0], dtype=torch.float32)
    kept = 1 - ((channels - low) / (high - low)).clamp(0, 1)
    return frequencies / factor * (1 - kept) + frequencies * kept


def _yarn_magnitude(factor: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0

"""A model that is a pure function of all the tokens before and the row's key."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from server.engine.request import SamplingParams
from server.engine.step_plan import LogprobArrays

_MASK = (1 << 61) - 1


def extend_prefix(prefix: int, token: int) -> int:
    """The fingerprint of a prefix with one more token."""
    return (prefix * 1_000_003 + token + 7) & _MASK


def _mix(value: int) -> int:
    value = (value ^ (value >> 29)) * 0xBF58476D1CE4E5B9 & _MASK
    return (value ^ (value >> 32)) * 0x94D049BB133111EB & _MASK


def model_token(
    prefix: int, sampling: SamplingParams, choice: int, vocab: int, forbidden: Iterable[int] = ()
) -> int:
    """The token after the prefix: a pure function of the prefix, the seed and the choice."""
    token = (_mix(prefix ^ _mix(sampling.seed * 64 + choice + 1)) >> 7) % vocab
    banned = set(forbidden)
    for step in range(vocab):
        if (token + step) % vocab not in banned:
            return (token + step) % vocab
    return token


def model_logprob(prefix: int, token: int) -> float:
    return -((_mix(prefix + token * 31 + 5) >> 7) % 4096) / 256.0


def pack_logprobs(scored: list[tuple[int, int]], num_top: int, vocab: int) -> LogprobArrays:
    """For each (prefix, token): the token, then the ``num_top`` most likely ones."""
    ids: list[int] = []
    values: list[float] = []
    for prefix, token in scored:
        ranked = sorted(range(vocab), key=lambda t: (-model_logprob(prefix, t), t))
        ranked = (ranked + [0] * num_top)[:num_top]
        ids += [token, *ranked]
        values += [model_logprob(prefix, t) for t in (token, *ranked)]
    return LogprobArrays(
        num_positions=len(scored),
        width=1 + num_top,
        token_ids=struct.pack(f"<{len(ids)}i", *ids),
        logprobs=struct.pack(f"<{len(values)}f", *values),
    )

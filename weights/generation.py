"""Which ids end an answer: what generation_config.json and config.json say together. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights.errors import CheckpointError
from weights.spec import ModelSpec

_KEY = "eos_token_id"


def end_of_sequence_ids(spec: ModelSpec, generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer, each once, in rising order; () where there is none.

    As transformers' generate: ids that generation_config.json names stand alone, and config.json's
    (in ``spec``; the family's default where it has no such key) hold where it names none. There we
    leave the reference, which would then run every answer to its length: no checkpoint means that.
    The tokenizer's eos_token is a word for templates and ends nothing, there as here.

    Raises:
        CheckpointError: generation_config.json names something that is not an id of the vocabulary.
    """
    named = _named(generation_config)
    for token in named:
        if isinstance(token, bool) or not isinstance(token, int):
            raise CheckpointError(f"generation_config.json: {_KEY} {token!r} is not an integer")
        if not 0 <= token < spec.vocab_size:
            raise CheckpointError(
                f"generation_config.json: {_KEY} {token} is not below the vocabulary's "
                f"{spec.vocab_size}"
            )
    return tuple(sorted(set(named or spec.eos_token_ids)))


def end_of_sequence_source(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> str:
    """The file that ``end_of_sequence_ids`` are from, in words for the report."""
    if _named(generation_config):
        return "generation_config.json"
    return "config.json" if _KEY in config else "the family's, since no file names any"


def _named(generation_config: Mapping[str, Any]) -> list[Any]:
    """The ids that generation_config.json gives: one, a list of them, or none."""
    given = generation_config.get(_KEY)
    return given if isinstance(given, list) else [] if given is None else [given]

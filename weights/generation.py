"""What generation_config.json says of ends, beside config.json. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights.errors import CheckpointError
from weights.spec import ModelSpec


def end_of_sequence_ids(spec: ModelSpec, generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of both configurations, each once, in rising order.

    Raises:
        CheckpointError: generation_config.json names something that is no id of the vocabulary.
    """
    given = generation_config.get("eos_token_id")
    more = given if isinstance(given, list) else [] if given is None else [given]
    for token in more:
        if isinstance(token, bool) or not isinstance(token, int):
            raise CheckpointError(f"generation_config.json: eos_token_id {token!r} is no integer")
        if not 0 <= token < spec.vocab_size:
            raise CheckpointError(
                f"generation_config.json: eos_token_id {token} is not below the vocabulary's "
                f"{spec.vocab_size}"
            )
    return tuple(sorted({*spec.eos_token_ids, *more}))

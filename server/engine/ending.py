"""What ends a sequence after a token, as far as the engine decides it.

Stop strings are decided where the text is known, by server.output, which then calls finish().
"""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.request import FinishReason
from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Ending:
    reason: FinishReason
    stop_token_id: int | None = None


def ending_after(sequence: Sequence, max_model_len: int) -> Ending | None:
    """Whether the last known token, just generated, ends the sequence.

    A stop id counts only where it was allowed: after ``min_tokens`` other tokens.
    """
    token_id = sequence.token_ids[-1]
    may_stop = sequence.num_generated_tokens > sequence.sampling.min_tokens
    if may_stop and token_id in sequence.request.stop_token_ids:
        return Ending(FinishReason.STOP, token_id)
    if not sequence.wants_tokens or sequence.num_tokens >= max_model_len:
        return Ending(FinishReason.LENGTH)
    return None

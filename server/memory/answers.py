"""Bytes that answers take on the host: what the engine is told to count with. No torch.

Measured on CPython 3.11 over whole answers, the objects of both processes and the JSON together; a
test holds them as a bound that is no more than a few times what is measured.
"""

from __future__ import annotations

from server.engine.request import AnswerLimits

TOKEN_BYTES = 320  # a token: in the engine's lists, as a piece of text, as a piece of an answer
LOGPROB_BYTES = 1250  # a log-probability: with its token as text and bytes, in the longer form
LEAST_BYTES = 64 << 20
MOST_BYTES = 4 << 30
SHARE = 4  # of what the plan leaves of the host's memory, one part in so many


def answer_limits(host_bytes_left: int) -> AnswerLimits:
    """What all open answers together may take of the host's memory that the plan leaves."""
    most = min(MOST_BYTES, max(LEAST_BYTES, host_bytes_left // SHARE))
    return AnswerLimits(max_bytes=most, token_bytes=TOKEN_BYTES, logprob_bytes=LOGPROB_BYTES)

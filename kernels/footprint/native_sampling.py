"""What choosing tokens natively works in. No torch."""

from __future__ import annotations

SCORED_TOKEN_BYTES = 8  # QR_SCORED_TOKEN_BYTES: a token and its value


def scratch_bytes(vocab_size: int, threads: int) -> int:
    """Room for each thread to set apart the tokens of a row that truncates."""
    return SCORED_TOKEN_BYTES * vocab_size * threads

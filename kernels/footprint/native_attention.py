"""What native attention on a CPU works in. No torch."""

from __future__ import annotations

from kernels.footprint.attention import AttentionShape

QUERY_ROWS = 16  # queries that a unit of work has at most
SPAN_KEYS = 512  # keys whose part of a result is kept apart, where several threads share a query
MOST_HEAD_DIM = 512
PARTIAL_BYTES = 4 * QUERY_ROWS * (2 + MOST_HEAD_DIM)
SHARED_UNITS = 4  # units that threads share, of the longest context


def native_attention_regions(shape: AttentionShape) -> dict[str, int]:
    """Partial results of a few units over the longest context: with fewer units than threads a
    query's context is shared out, and where these do not suffice it is not."""
    spans = -(-shape.max_model_len // SPAN_KEYS)
    return {"partials": SHARED_UNITS * spans * PARTIAL_BYTES if spans > 1 else 0}

"""How much of the host's memory the API process may hold for clients: --api-memory. No torch.

server.host_budget divides it. What the process itself takes, and its template workers, is not in
it; nor are whole answers, which the engine counts before it accepts a request
(server.engine.response_budget).
"""

from __future__ import annotations

from server.errors import StartupError
from server.units import exact_size, format_size

SHARE = 8  # of the free memory, one part in so many
# Any body can be parsed (65536 lists and 262144 token ids take 43 MiB), and a prompt of 150 KB be
# tokenised: some 40,000 tokens.
LEAST_BYTES = 128 << 20
MOST_BYTES = 1 << 30  # by itself: a prompt of 1.2 MB
BODIES = 8  # of the largest size, one in the memory for bodies, with what parsing it takes


def api_memory(asked: int | None, free_bytes: int, max_body_bytes: int) -> int:
    """Bytes of the budget on a machine with so many free; ``asked`` is None for auto.

    Raises:
        StartupError: bodies of ``max_body_bytes`` do not go into it.
    """
    needed = max(LEAST_BYTES, BODIES * max_body_bytes)
    if asked is None:
        return max(needed, min(MOST_BYTES, free_bytes // SHARE))
    if asked < needed:
        raise StartupError(
            f"--api-memory {exact_size(asked)} is too little for --max-body-size "
            f"{exact_size(max_body_bytes)}: it takes {format_size(needed)} to receive and parse "
            "such bodies; raise the one or lower the other"
        )
    return asked

"""Whether the server takes requests, and the refusals of one that does not.

Asked by /ready, by a request that generates before it is tokenised, and once more when it is handed
to the engine. Nothing else asks: what was handed over before the server drains is finished.
"""

from __future__ import annotations

from server.api.state import HealthView
from server.errors import ErrorCode, QuireError

RETRY_AFTER_S = 5


def check_takes_requests(health: HealthView) -> None:
    """Raises QuireError: the server stops, loads, or has no engine."""
    if health.draining:
        raise _unavailable("The server is stopping and takes no new requests.", draining=True)
    if health.loading:
        raise _unavailable(
            "The model is still loading. Try again in a few seconds; /ready says when."
        )
    if not health.alive:
        raise _unavailable("The engine is not running. Try again in a few seconds.")


def _unavailable(message: str, *, draining: bool = False) -> QuireError:
    code = ErrorCode.SHUTTING_DOWN if draining else ErrorCode.ENGINE_UNAVAILABLE
    return QuireError(code, message, retry_after=RETRY_AFTER_S)

"""The closed set of errors that a client can meet, each with its HTTP status and OpenAI code.

Every layer below the API raises one of these; server.api turns it into the one error shape. The
messages say what was given, what is allowed and what to do; they carry no path and no traceback.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from server.engine.request import EngineError


@dataclass(frozen=True, slots=True)
class ErrorKind:
    status: int
    type: str
    code: str


class ErrorCode(Enum):
    """The kinds of error. ``value`` gives HTTP status, OpenAI type and OpenAI code."""

    INVALID_REQUEST = ErrorKind(400, "invalid_request_error", "invalid_request")
    INVALID_VALUE = ErrorKind(400, "invalid_request_error", "invalid_value")
    INVALID_TYPE = ErrorKind(400, "invalid_request_error", "invalid_type")
    MISSING_PARAMETER = ErrorKind(400, "invalid_request_error", "missing_required_parameter")
    UNKNOWN_PARAMETER = ErrorKind(400, "invalid_request_error", "unknown_parameter")
    UNSUPPORTED_PARAMETER = ErrorKind(400, "invalid_request_error", "unsupported_parameter")
    CONTEXT_LENGTH = ErrorKind(400, "invalid_request_error", "context_length_exceeded")
    CAPACITY = ErrorKind(400, "invalid_request_error", "request_exceeds_capacity")
    NO_CHAT_TEMPLATE = ErrorKind(400, "invalid_request_error", "no_chat_template")
    MODEL_NOT_FOUND = ErrorKind(404, "invalid_request_error", "model_not_found")
    NOT_FOUND = ErrorKind(404, "invalid_request_error", "not_found")
    METHOD_NOT_ALLOWED = ErrorKind(405, "invalid_request_error", "method_not_allowed")
    REQUEST_TIMEOUT = ErrorKind(408, "invalid_request_error", "request_timeout")
    BODY_TOO_LARGE = ErrorKind(413, "invalid_request_error", "request_too_large")
    UNSUPPORTED_MEDIA_TYPE = ErrorKind(415, "invalid_request_error", "unsupported_media_type")
    QUEUE_FULL = ErrorKind(429, "rate_limit_error", "queue_full")
    HEADERS_TOO_LARGE = ErrorKind(431, "invalid_request_error", "headers_too_large")
    INTERNAL = ErrorKind(500, "server_error", "internal_error")
    NON_FINITE = ErrorKind(500, "server_error", "non_finite_logits")
    OUT_OF_MEMORY = ErrorKind(503, "server_error", "out_of_memory")
    QUEUE_TIMEOUT = ErrorKind(503, "server_error", "queue_timeout")
    SHUTTING_DOWN = ErrorKind(503, "server_error", "shutting_down")
    ENGINE_UNAVAILABLE = ErrorKind(503, "server_error", "engine_unavailable")
    TEMPLATE_UNAVAILABLE = ErrorKind(503, "server_error", "chat_template_unavailable")
    TOO_MANY_CONNECTIONS = ErrorKind(503, "server_error", "too_many_connections")
    MEMORY_BUDGET = ErrorKind(503, "server_error", "memory_budget_exceeded")


def client_error_code(error: EngineError) -> ErrorCode:
    """What a client is told for the engine's reason. mypy holds that no reason is left out."""
    match error:
        case EngineError.INVALID_REQUEST | EngineError.UNSUPPORTED_TASK:
            return ErrorCode.INVALID_REQUEST
        case EngineError.INVALID_VALUE:
            return ErrorCode.INVALID_VALUE
        case EngineError.CONTEXT_LENGTH:
            return ErrorCode.CONTEXT_LENGTH
        case EngineError.CAPACITY:
            return ErrorCode.CAPACITY
        case EngineError.QUEUE_FULL:
            return ErrorCode.QUEUE_FULL
        case EngineError.QUEUE_TIMEOUT:
            return ErrorCode.QUEUE_TIMEOUT
        case EngineError.SHUTTING_DOWN:
            return ErrorCode.SHUTTING_DOWN
        case EngineError.NON_FINITE:
            return ErrorCode.NON_FINITE
        case EngineError.OUT_OF_MEMORY:
            return ErrorCode.OUT_OF_MEMORY
        case EngineError.INTERNAL:
            return ErrorCode.INTERNAL
        case _:
            assert_never(error)


class QuireError(Exception):
    """An error that is the client's to see.

    ``param`` names the request's field at fault; ``retry_after`` is in seconds and becomes the
    Retry-After header.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after


class StartupError(Exception):
    """A reason not to start. The message names the file, the tensor or the option at fault."""

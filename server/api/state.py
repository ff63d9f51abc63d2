"""ApiState: everything the HTTP layer may touch, composed once at start and never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.api.open_request import OpenRequests
from server.engine.events import EngineClient
from server.errors import ErrorCode, QuireError
from server.host_budget import HostBudget
from server.metrics.stats import RequestMetrics
from server.startup.descriptors import PROBE_CONNECTIONS
from server.text.chat_template import ChatTemplate
from server.text.tokenizer import Tokenizer


class HealthView(Protocol):
    """The server's own state, read at each question. Never waits."""

    @property
    def alive(self) -> bool:
        """The engine process lives and its step loop makes progress."""
        ...

    @property
    def ready(self) -> bool:
        """The engine accepts work."""
        ...

    @property
    def loading(self) -> bool:
        """The engine is on its way: it loads the model, for the first time or again."""
        ...

    @property
    def draining(self) -> bool:
        """The server was told to stop and only finishes what it has begun."""
        ...


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the API knows about the served model. Sizes are tokens or counts."""

    name: str  # the served name, which requests give as `model`
    created: int  # Unix seconds
    vocab_size: int
    max_model_len: int
    kv_capacity_tokens: int
    max_n: int = 16
    max_logprobs: int = 20
    max_prompts: int = 64  # prompts in one completion request
    max_choices: int = 256  # prompts x n
    system_fingerprint: str = "quire"

    @property
    def last_token_id(self) -> int:
        return self.vocab_size - 1


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Values for sampling fields that a request leaves out. OpenAI's, unless the model has its own.

    server.api.sampling.generation_defaults makes them from a generation_config.json.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds on what a client may send and hold open. Seconds and bytes as named.

    ``receive_timeout_s`` is for a whole request, from its first byte to its last, and for a new
    connection from its beginning. ``probe_connections`` are beyond ``max_connections``, for
    questions about the server's own state only (server.api.http1.places).
    """

    max_body_bytes: int = 8 * 1024 * 1024
    max_header_bytes: int = 32 * 1024
    receive_timeout_s: float = 15.0
    send_timeout_s: float = 60.0  # for a client that does not read
    keep_alive_s: float = 30.0  # between two requests
    stream_keep_alive_s: float = 15.0  # silence of a stream before a comment; 0 writes none
    max_connections: int = 1024
    probe_connections: int = PROBE_CONNECTIONS
    quiet_s: float = 1.0  # before a connection without a request may be closed for another's sake
    max_json_depth: int = 32
    max_json_containers: int = 65_536  # lists and objects of a body
    max_json_values: int = 65_536  # of a body; token ids of prompts not counted
    max_prompt_ids: int = 262_144  # beside them, in a completion's body


@dataclass(frozen=True, slots=True)
class ApiState:
    """The parts that the routes use. Injected callables never block.

    ``metrics`` also carries the terminal log line of each request: the composition root joins the
    exporter and the log writer in one RequestMetrics. ``memory`` gives the report's JSON,
    ``memory_text`` the same as a table. ``version`` is what /version answers. ``live`` are the
    requests under way, ``budget`` what they may hold.
    """

    engine: EngineClient
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    model: ModelCard
    defaults: GenerationDefaults
    limits: HttpLimits
    metrics: RequestMetrics
    budget: HostBudget
    memory: Callable[[], Mapping[str, Any]]
    memory_text: Callable[[], str]
    render_metrics: Callable[[], bytes]
    health: HealthView
    version: Mapping[str, str] = field(default_factory=dict)
    live: OpenRequests = field(default_factory=OpenRequests)


# Whether the server takes requests, and the refusals of one that does not.
#
# Asked by /ready, by a request that generates before it is tokenised, and once more when it is
# handed to the engine. Nothing else asks: what was handed over before the server drains is
# finished.

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

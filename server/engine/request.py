"""What crosses from the API to the engine: one immutable request; and the words of its end.

Plain standard-library dataclasses, encoded as they are by server.ipc. Everything in them was
validated by the API; the engine re-checks only what it alone can know (capacity, queue bounds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Validated by server.api; every number here is finite and in range.

    ``logprobs`` and ``prompt_logprobs`` are the number of top alternatives reported beside each
    chosen token (0 reports the token alone); None reports nothing. ``seed`` is always set: drawn
    by the API where the client gave none.
    """

    seed: int  # 0 <= seed < 2**63
    max_tokens: int = 16  # 0 scores the prompt and generates nothing
    min_tokens: int = 0
    temperature: float = 1.0  # 0 is greedy
    top_k: int = -1  # -1 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0  # over generated tokens
    frequency_penalty: float = 0.0  # over generated tokens
    repetition_penalty: float = 1.0  # over prompt and generated tokens
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class Task(StrEnum):
    """What a request wants of the model. Executor.supported_tasks says which of them it offers."""

    GENERATE = "generate"
    EMBED = "embed"
    CLASSIFY = "classify"
    SCORE = "score"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt and its n choices.

    ``request_id`` is made by the server and unique for its life. A lower ``priority`` is served
    first. ``tenant`` is the client's own label of its user, which changes nothing. ``timeout_s``
    bounds the wait in the queue, in seconds; None takes the engine's own. ``reports_memory`` asks
    for what it holds with every output.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    task: Task = Task.GENERATE
    n: int = 1
    priority: int = 0
    tenant: str = ""
    adapter_id: str = ""
    adapter_version: int = 0
    cache_salt: str = ""
    timeout_s: float | None = None
    reports_memory: bool = False


class FinishReason(StrEnum):
    STOP = "stop"  # EOS, a stop token id, or a stop string (decided by server.output)
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class EngineError(StrEnum):
    """Why a list is refused, or a choice ends in an error: all the reasons that the engine has.

    server.errors.client_error_code gives each its HTTP status. The wire carries the value, and a
    frame with another one is refused when it is decoded.
    """

    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_VALUE = "INVALID_VALUE"
    CONTEXT_LENGTH = "CONTEXT_LENGTH"
    UNSUPPORTED_TASK = "UNSUPPORTED_TASK"
    CAPACITY = "CAPACITY"  # it could never run here, however long it waited
    QUEUE_FULL = "QUEUE_FULL"
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    NON_FINITE = "NON_FINITE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """What all open answers may take of the host's memory, and what to count for each part."""

    max_bytes: int
    token_bytes: int
    logprob_bytes: int


# The ranges of the sampling numbers: checked by the API and again at admission, written here.
#
# They keep float32 finite for every row of logits within +-1e36, whatever is combined, with room
# for what no checkpoint that means anything comes near. Only the repetition penalty multiplies: by
# at most 100, either way (a penalty of 1e-38 made infinities of ordinary logits). The others add at
# most 100 (a bias) and twice the length of an answer. Temperatures divide the distance from the
# highest logit, which is 0 for that one and at worst minus infinity, "never", for another; below
# the least number that float32 holds they are 0.


class Range(NamedTuple):
    """Finite numbers from ``low`` to ``high``; ``above_low`` leaves ``low`` itself out."""

    low: float
    high: float
    above_low: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        # False for what is not finite, too.
        return (self.low < value if self.above_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        least = "above" if self.above_low else "from"
        return f"a finite number {least} {self.low:g} to {self.high:g}"


LOGIT_BIAS = Range(-100, 100)

# By the names of SamplingParams.
SAMPLING_RANGES: Mapping[str, Range] = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, above_low=True),
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0.01, 100),
}

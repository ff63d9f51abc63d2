"""What the engine says back: one EngineFrame a step, and the client protocol that carries it.

A request meets exactly one of ``Refused`` or ``Accepted``; after ``Accepted`` come outputs, and
each of its n choices ends in exactly one ChoiceOutput with a ``finish_reason``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.engine.request import EngineError, EngineRequest, FinishReason
from server.engine.step_plan import LogprobArrays


@dataclass(frozen=True, slots=True)
class Refused:
    """The whole submitted list is refused. ``retry_after`` is in seconds."""

    request_ids: tuple[str, ...]
    code: EngineError
    message: str
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptOutput:
    """Sent when a request's prompt is first scheduled and, with arrays, as its logprobs arrive.

    ``logprobs`` describe prompt tokens ``first_position`` onwards (position 0 has none).
    ``queue_seconds`` is the wait that ended with the first scheduling; only that output has it.
    """

    request_id: str
    num_cached_tokens: int
    first_position: int = 1
    logprobs: LogprobArrays | None = None
    queue_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RequestMemory:
    """The KV cache blocks of one request, over all its choices.

    ``blocks`` are held now, each counted once; ``shared_blocks`` of them are held by another
    request too, or by a step in flight. ``share`` divides each block by its holders, so that the
    shares of all requests and the blocks that no request holds add up to the pool.
    ``block_seconds`` is the share over time, until now.
    """

    request_id: str
    block_bytes: int
    blocks: int
    peak_blocks: int
    shared_blocks: int
    share: float
    block_seconds: float


@dataclass(frozen=True, slots=True)
class ChoiceOutput:
    """New tokens of one choice. ``stop_token_id`` is the id that ended it, where one did.

    ``error_code`` and ``error_message`` are set when ``finish_reason`` is error. ``memory`` is set
    where the request asked for it.
    """

    request_id: str
    choice: int
    token_ids: tuple[int, ...] = ()
    logprobs: LogprobArrays | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error_code: EngineError | None = None
    error_message: str | None = None
    memory: RequestMemory | None = None


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step's figures. Gauges (running, waiting, blocks) go by shared memory instead."""

    step_id: int
    num_rows: int
    num_prompt_tokens: int
    num_decode_tokens: int
    num_preemptions: int
    prefix_queried_tokens: int
    prefix_hit_tokens: int
    step_seconds: float
    forward_seconds: float
    sample_seconds: float
    queue_seconds: tuple[float, ...] = ()  # waits of the requests first scheduled in this step
    # Chosen for sequences that had lost their row or ended, also where only the client knew of it.
    num_discarded_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineFrame:
    """Everything that happened since the last frame."""

    accepted: tuple[Accepted, ...] = ()
    refused: tuple[Refused, ...] = ()
    prompts: tuple[PromptOutput, ...] = ()
    choices: tuple[ChoiceOutput, ...] = ()
    stats: StepStats | None = None


Event = PromptOutput | ChoiceOutput


class EngineClient(Protocol):
    """The engine as the API sees it: across a process boundary, or in this process."""

    async def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Returns once every request is accepted.

        Raises:
            QuireError: the list was refused whole (queue full, too large, draining), or the
                engine is not there.
        """
        ...

    def events(self, request_id: str) -> AsyncIterator[Event]:
        """The accepted request's events, ending after the last choice's finish.

        Raises:
            QuireError: the engine died or restarted under the request.
        """
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Ends the requests and frees what they hold within one step. Idempotent."""
        ...

    def finish(self, request_id: str, choice: int, num_tokens: int) -> None:
        """Ends one choice that met a stop string, with ``num_tokens`` of its tokens. No abort: no
        further event comes for it."""
        ...

    async def memory_of(self, request_ids: Sequence[str]) -> tuple[RequestMemory, ...]:
        """What the live ones of these requests hold now. Unknown ids are left out.

        Raises:
            QuireError: the engine is not there, or did not answer in time.
        """
        ...


# OutputBuffer: what happened since the last frame, in order.


@dataclass(slots=True)
class OutputBuffer:
    accepted: list[Accepted] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    prompts: list[PromptOutput] = field(default_factory=list)
    choices: list[ChoiceOutput] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.accepted or self.refused or self.prompts or self.choices)

    def flush(self, stats: StepStats | None = None) -> EngineFrame:
        """A frame of everything, after which the outputs is empty."""
        frame = EngineFrame(
            accepted=tuple(self.accepted),
            refused=tuple(self.refused),
            prompts=tuple(self.prompts),
            choices=tuple(self.choices),
            stats=stats,
        )
        for events in (self.accepted, self.refused, self.prompts, self.choices):
            events.clear()
        return frame

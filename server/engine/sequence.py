"""A request inside the engine, and its sequences: one for each of its n choices.

Only a sequence owns tokens, a row and block tables.

    WAITING ──────> RUNNING ──> FINISHED_*      FORK_PENDING: a choice that holds a row of its
       │  └─────────> ▲ │                       request's sequence group until the first choice
       └> FORK_PENDING┘ ▼                       has computed the prompt that all of them share
                     PREEMPTED                  PREEMPTED: recomputed when it gets a row again

WAITING and PREEMPTED sequences are in the waiting queue, except for the later choices of a request
whose prompt is not computed yet: these follow the first choice, and queue as PREEMPTED should it
end before them. FINISHED_* is never left.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from server.engine.prefix_cache import CacheEntry, Namespace
from server.engine.request import EngineRequest, FinishReason, SamplingParams

# RequestBlocks: the KV cache blocks of one request, over all its choices, now and over time.


class RequestBlocks:
    """A block counts once, however many of the request's choices hold it.

    ``seconds`` adds up what the holders were given (server.engine.block_pool); of blocks that are
    still held it is too little by what they were given when they were taken.
    """

    __slots__ = ("_counts", "_seconds", "peak_blocks")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._seconds = 0.0
        self.peak_blocks = 0

    @property
    def counts(self) -> dict[int, int]:
        """Block id -> how many choices hold it."""
        return self._counts

    def take(self, block_ids: Iterable[int], given: float) -> None:
        for block_id in block_ids:
            self._counts[block_id] = self._counts.get(block_id, 0) + 1
        self._seconds -= given
        self.peak_blocks = max(self.peak_blocks, len(self._counts))

    def let_go(self, block_ids: Iterable[int], given: float) -> None:
        for block_id in block_ids:
            if self._counts[block_id] == 1:
                del self._counts[block_id]
            else:
                self._counts[block_id] -= 1
        self._seconds += given

    def block_seconds(self, given: float) -> float:
        """Up to now; ``given`` is of the blocks held now, once for every choice that holds them."""
        return self._seconds + given if self._counts else max(0.0, self._seconds)


SECONDS_PER_PRIORITY_LEVEL = 10.0


class SequenceState(StrEnum):
    WAITING = "waiting"
    FORK_PENDING = "fork_pending"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED_STOPPED = "finished_stopped"
    FINISHED_LENGTH = "finished_length"
    FINISHED_ABORTED = "finished_aborted"
    FINISHED_ERROR = "finished_error"

    @property
    def is_finished(self) -> bool:
        return self in _FINISHED


_FINISHED = frozenset(
    {
        SequenceState.FINISHED_STOPPED,
        SequenceState.FINISHED_LENGTH,
        SequenceState.FINISHED_ABORTED,
        SequenceState.FINISHED_ERROR,
    }
)
_NEXT_STATES = {
    SequenceState.WAITING: {
        SequenceState.RUNNING,
        SequenceState.FORK_PENDING,
        SequenceState.PREEMPTED,
    }
    | _FINISHED,
    SequenceState.FORK_PENDING: {
        SequenceState.RUNNING,
        SequenceState.PREEMPTED,
        SequenceState.WAITING,
    }
    | _FINISHED,
    SequenceState.RUNNING: {SequenceState.PREEMPTED} | _FINISHED,
    SequenceState.PREEMPTED: {SequenceState.RUNNING} | _FINISHED,
}
_STATE_AFTER = {
    FinishReason.STOP: SequenceState.FINISHED_STOPPED,
    FinishReason.LENGTH: SequenceState.FINISHED_LENGTH,
    FinishReason.ABORT: SequenceState.FINISHED_ABORTED,
    FinishReason.ERROR: SequenceState.FINISHED_ERROR,
}

PriorityKey = tuple[float, int, int]
Arrival = tuple[int, int]  # of the request, and which of its choices


class Sequence:
    """One choice of one request: what it knows, what is computed, and where that is kept.

    ``num_computed_tokens`` counts the tokens whose keys and values are in the cache or will be
    when the steps in flight are done; ``num_committed_tokens`` only those of completed steps.
    ``num_in_flight_tokens`` are being chosen by steps in flight: they have a place, and no id yet.
    ``epoch`` rises when the sequence loses its row, so that a result that was under way is known
    as stale.

    Of each block table, the first ``num_freed_blocks`` entries were freed behind a window, and the
    executor knows the first ``num_told_blocks``. ``num_cached_blocks`` were offered to the prefix
    cache, the last of them as ``prefix_entry``, which is None where that failed.
    """

    def __init__(self, request: Request, choice: int, num_groups: int) -> None:
        self.request = request
        self.choice = choice
        self.state = SequenceState.WAITING
        self.token_ids: list[int] = list(request.prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_committed_tokens = 0
        self.num_in_flight_tokens = 0
        self.num_reserved_tokens = 0
        self.block_tables: tuple[list[int], ...] = tuple([] for _ in range(num_groups))
        self.num_freed_blocks = [0] * num_groups
        self.num_told_blocks = [0] * num_groups
        self.num_cached_blocks = 0
        self.prefix_entry: CacheEntry | None = None
        self.row: int | None = None
        self.epoch = 0
        self.num_preemptions = 0
        self.last_step_id = -1
        self.is_in_turn = False  # its request got a row as the first to arrive, out of rank's order
        self.priority_key: PriorityKey = (request.virtual_arrival, request.arrival, choice)
        self.arrival: Arrival = (request.arrival, choice)

    def __repr__(self) -> str:
        return f"Sequence({self.request.id}#{self.choice}, {self.state})"

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens known on the host."""
        return len(self.token_ids)

    @property
    def num_tokens_with_in_flight(self) -> int:
        """The length when the steps in flight are done, unless one of them ends the sequence."""
        return self.num_tokens + self.num_in_flight_tokens

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_generated_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def max_num_tokens(self) -> int:
        """The length that the sequence can reach."""
        return self.num_prompt_tokens + self.sampling.max_tokens

    @property
    def wants_tokens(self) -> bool:
        return self.num_tokens < self.max_num_tokens

    @property
    def num_tokens_to_compute(self) -> int:
        """Of the tokens foreseen, those that a step has to compute: never the last one of all."""
        return min(
            self.num_tokens_with_in_flight, max(self.num_prompt_tokens, self.max_num_tokens - 1)
        )

    @property
    def min_tokens_pending(self) -> bool:
        """The next token to be planned may not be an end-of-sequence or stop id."""
        num_foreseen = self.num_tokens_with_in_flight - self.num_prompt_tokens
        return num_foreseen < self.sampling.min_tokens

    @property
    def is_finished(self) -> bool:
        return self.state.is_finished

    def move_to(self, state: SequenceState) -> None:
        """Changes the state.

        Raises:
            ValueError: the states' graph has no such edge.
        """
        if state not in _NEXT_STATES.get(self.state, ()):
            raise ValueError(f"{self!r} cannot become {state}")
        self.state = state

    def finish(self, reason: FinishReason) -> None:
        self.move_to(_STATE_AFTER[reason])

    def forget_computed(self) -> None:
        """Back to nothing computed. Tokens stay; results under way become stale."""
        self.num_computed_tokens = 0
        self.num_committed_tokens = 0
        self.num_in_flight_tokens = 0
        self.num_reserved_tokens = 0
        self.epoch += 1

    def clear_tables(self) -> None:
        """No block is held any more, and none was offered to the prefix cache."""
        for group, table in enumerate(self.block_tables):
            table.clear()
            self.num_freed_blocks[group] = self.num_told_blocks[group] = 0
        self.num_cached_blocks = 0
        self.prefix_entry = None


class Request:
    """An accepted request until its last choice ends.

    A priority level is worth ``SECONDS_PER_PRIORITY_LEVEL`` seconds of waiting: requests are
    ranked by ``virtual_arrival``, so a lower priority number goes first, equal numbers go in order
    of arrival, and nothing is overtaken by what arrives later than its own level's worth. How much
    may go first by rank is bounded by server.engine.turns. ``max_decode_steps`` is the most tokens
    that one step may give each choice.
    """

    def __init__(
        self,
        request: EngineRequest,
        *,
        arrival: int,
        arrival_time: float,
        timeout_s: float,
        eos_token_ids: tuple[int, ...],
        num_groups: int,
        max_decode_steps: int,
    ) -> None:
        self.request = request
        self.arrival = arrival
        self.arrival_time = arrival_time
        self.virtual_arrival = arrival_time + request.priority * SECONDS_PER_PRIORITY_LEVEL
        self.deadline = arrival_time + timeout_s
        self.stop_token_ids = frozenset(request.sampling.stop_token_ids) | (
            frozenset() if request.sampling.ignore_eos else frozenset(eos_token_ids)
        )
        self.namespace = Namespace(request.cache_salt, request.adapter_id, request.adapter_version)
        self.blocks = RequestBlocks()
        self.max_decode_steps = max_decode_steps
        self.was_scheduled = False
        self.was_short_of_memory = False  # in a step that found none for several requests
        self.is_forked = request.n == 1
        self.num_prompt_logits_sent = 0  # prompt positions whose next token was reported
        self.sequences = tuple(Sequence(self, choice, num_groups) for choice in range(request.n))

    @property
    def id(self) -> str:
        return self.request.request_id

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return self.request.prompt_token_ids

    @property
    def primary(self) -> Sequence:
        """The choice that computes the prompt."""
        return self.sequences[0]

    @property
    def live_sequences(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if not sequence.is_finished]

    @property
    def owes_prompt_logits(self) -> bool:
        """Prompt log-probabilities were asked for and have not all been delivered."""
        last = len(self.prompt_token_ids) - 1
        return self.sampling.prompt_logprobs is not None and self.num_prompt_logits_sent < last

    def note_turn(self) -> None:
        """A row went to it out of the order of rank: its choices arrived together, and so the turn
        is theirs together, whenever they get their rows."""
        for sequence in self.sequences:
            sequence.is_in_turn = True

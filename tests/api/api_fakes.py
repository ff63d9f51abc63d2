"""An engine that follows a script, a byte-level tokenizer, and a state composed of them."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from server.api.state import ApiState, GenerationDefaults, HttpLimits, ModelCard
from server.engine.events import ChoiceOutput, Event, PromptOutput, RequestMemory
from server.engine.request import EngineRequest, FinishReason
from server.engine.step_plan import LogprobArrays
from server.errors import ErrorCode, QuireError
from server.host_budget import HostBudget
from server.metrics.stats import RequestRecord
from server.text.chat_template import ChatTemplate
from server.text.stages import byte_of_character
from server.text.tokenizer import Tokenizer

EOS = 256
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_tokenizer(vocab_size: int = 300) -> Tokenizer:
    """One token a byte: id == byte. 256 is the end of a text, the rest is padding."""
    vocab = dict(byte_of_character())
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    return Tokenizer(backend, vocab_size=vocab_size)


Script = Callable[[EngineRequest, int], Sequence[int]]


def counting(request: EngineRequest, choice: int) -> Sequence[int]:
    """Letters that depend on the prompt, the seed where sampled, and the choice."""
    start = sum(request.prompt_token_ids) + 7 * choice
    if request.sampling.temperature > 0:
        start += request.sampling.seed
    return [97 + (start + index * index) % 26 for index in range(request.sampling.max_tokens)]


def saying(text: str) -> Script:
    """The bytes of one text, then the end."""
    return lambda request, choice: [*text.encode(), EOS]


def packed(ids: Sequence[int], width: int) -> LogprobArrays:
    """Log-probabilities that a test can predict: -id / 100, the most likely id, id + 1, ..."""
    rows = [[id, *(id + step for step in range(width - 1))] for id in ids]
    flat_ids = array("i", [id for row in rows for id in row])
    values = array("f", [-row[0] / 100 for row in rows for _ in row])
    return LogprobArrays(len(rows), width, flat_ids.tobytes(), values.tobytes())


@dataclass
class FakeEngine:
    """Follows ``script``. Every delay is in seconds; ``max_open`` bounds accepted requests."""

    script: Script = counting
    accept_delay: float = 0.0
    token_delay: float = 0.0
    tokens_per_event: int = 1
    max_open: int = 10_000
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    failure: QuireError | None = None
    dies_after: int | None = None
    open: dict[str, EngineRequest] = field(default_factory=dict)
    seen: list[EngineRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    finished: list[tuple[str, int, int]] = field(default_factory=list)
    left: set[str] = field(default_factory=set)

    async def submit(self, requests: Sequence[EngineRequest]) -> None:
        self.seen.extend(requests)
        self.open.update((request.request_id, request) for request in requests)
        await asyncio.sleep(self.accept_delay)
        if self.failure is not None or len(self.open) > self.max_open:
            for request in requests:
                self.open.pop(request.request_id, None)
            raise self.failure or QuireError(
                ErrorCode.QUEUE_FULL, "The queue is full. Try again soon.", retry_after=3
            )

    async def events(self, request_id: str) -> AsyncIterator[Event]:
        self.left.discard(request_id)
        try:
            async for event in self._events(self.open[request_id]):
                yield event
        finally:
            self.left.add(request_id)

    async def _events(self, request: EngineRequest) -> AsyncIterator[Event]:
        request_id = request.request_id
        yield self._prompt(request)
        scripts = [self._tokens(request, choice) for choice in range(request.n)]
        position, sent = 0, 0
        live = set(range(request.n))
        while live:
            await asyncio.sleep(self.token_delay)
            if self.dies_after is not None and sent >= self.dies_after:
                raise QuireError(ErrorCode.ENGINE_UNAVAILABLE, "The engine died.")
            for choice in sorted(live):
                if choice in self._done(request_id):
                    live.discard(choice)
                    continue
                event = self._output(request, choice, scripts[choice], position)
                sent += 1
                if event.finish_reason is not None:
                    live.discard(choice)
                if not live:
                    self.open.pop(request_id, None)
                yield event
            position += self.tokens_per_event
        self.open.pop(request_id, None)

    def abort(self, request_ids: Sequence[str]) -> None:
        """As the real clients: a request whose events were left is not known any more."""
        request_ids = [id for id in request_ids if id not in self.left]
        self.aborted.extend(request_ids)
        for request_id in request_ids:
            self.open.pop(request_id, None)

    def finish(self, request_id: str, choice: int, num_tokens: int) -> None:
        self.finished.append((request_id, choice, num_tokens))
        request = self.open.get(request_id)
        if request is not None and len(self._done(request_id)) == request.n:
            self.open.pop(request_id)

    def _done(self, request_id: str) -> set[int]:
        return {choice for id, choice, _ in self.finished if id == request_id}

    async def memory_of(self, request_ids: Sequence[str]) -> tuple[RequestMemory, ...]:
        if self.failure is not None:
            raise self.failure
        return tuple(self.held(self.open[id]) for id in request_ids if id in self.open)

    def held(self, request: EngineRequest, tokens: int = 0) -> RequestMemory:
        """A block of 1000 bytes for every choice, and one more for what they share."""
        blocks = 1 + request.n
        return RequestMemory(
            request.request_id, 1000, blocks, blocks + tokens, 1, blocks - 0.5, blocks * 2.5
        )

    def _tokens(self, request: EngineRequest, choice: int) -> list[int]:
        return list(self.script(request, choice))[: request.sampling.max_tokens]

    def _prompt(self, request: EngineRequest) -> PromptOutput:
        width = request.sampling.prompt_logprobs
        ids = request.prompt_token_ids[1:]
        arrays = None if width is None else packed(ids, width + 1)
        return PromptOutput(
            request.request_id,
            self.cached_tokens,
            logprobs=arrays,
            queue_seconds=self.queue_seconds,
        )

    def _output(
        self, request: EngineRequest, choice: int, tokens: list[int], position: int
    ) -> ChoiceOutput:
        chunk = tokens[position : position + self.tokens_per_event]
        ended = position + len(chunk) >= len(tokens)
        stops = (*request.sampling.stop_token_ids, EOS)
        stop = next((index for index, id in enumerate(chunk) if id in stops), None)
        if stop is not None:
            chunk = chunk[: stop + 1]
        reason = FinishReason.STOP if stop is not None else FinishReason.LENGTH if ended else None
        width = request.sampling.logprobs
        return ChoiceOutput(
            request.request_id,
            choice,
            tuple(chunk),
            None if width is None or not chunk else packed(chunk, width + 1),
            reason,
            chunk[-1] if stop is not None else None,
            memory=self.held(request, position + len(chunk)) if request.reports_memory else None,
        )


@dataclass
class RecordingMetrics:
    """Keeps every report."""

    records: list[RequestRecord] = field(default_factory=list)
    http: list[tuple[str, str, int]] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    gaps: int = 0

    def observe_finish(self, record: RequestRecord) -> None:
        self.records.append(record)

    def observe_prompt(self, count: int) -> None:
        self.prompt_tokens += count

    def observe_completion(self, count: int) -> None:
        self.completion_tokens += count

    def observe_inter_token(self, seconds: float, count: int = 1) -> None:
        self.gaps += count

    def observe_http(self, route: str, method: str, status: int) -> None:
        self.http.append((route, method, status))


@dataclass
class FakeHealth:
    alive: bool = True
    ready: bool = True
    loading: bool = False
    draining: bool = False


def make_state(engine: FakeEngine | None = None, **changes: object) -> ApiState:
    """A whole state around ``engine``; ``changes`` replace its fields."""
    state = ApiState(
        engine=engine or FakeEngine(),
        tokenizer=byte_tokenizer(),
        chat_template=ChatTemplate(PLAIN_TEMPLATE),
        model=ModelCard(
            name="tiny", created=1, vocab_size=300, max_model_len=256, kv_capacity_tokens=4096
        ),
        defaults=GenerationDefaults(),
        limits=HttpLimits(max_body_bytes=1024 * 1024),
        metrics=RecordingMetrics(),
        budget=HostBudget(512 * 1024 * 1024),
        memory=lambda: {"total_bytes": 1},
        memory_text=lambda: "total 1\n",
        render_metrics=lambda: b"quire_up 1\n",
        health=FakeHealth(),
        version={"version": "0.1.0"},
    )
    return replace(state, **changes)

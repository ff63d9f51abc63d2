"""OutputProcessor: one engine request's events in, deltas of text out, the outcome with them.

It alone decides stop strings. An engine finish, or tokens, that cross such a decision are dropped.
The API and the in-process client use the same one, streaming or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from server.engine.events import ChoiceOutput, Event, PromptOutput
from server.engine.request import EngineError, EngineRequest, FinishReason
from server.engine.step_plan import LogprobArrays
from server.errors import ErrorCode, QuireError, client_error_code
from server.output.choice import ChoiceText, Delta
from server.output.logprobs import Score, TokenLogprob, unpack
from server.output.stops import StopStrings
from server.text.tokenizer import Tokenizer

RETRY_AFTER_SECONDS = 1  # of a request that waited in the queue past its deadline


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """``echo`` puts the prompt's text before each choice. ``continuation`` says that the text goes
    on from the prompt (completions) rather than beginning anew (a chat message): it decides
    whether a tokenizer's leading space is kept. ``stops`` that are prepared serve every prompt and
    choice of a request."""

    stops: StopStrings | tuple[str, ...] = ()
    echo: bool = False
    continuation: bool = True


@dataclass(slots=True)
class _Choice:
    text: ChoiceText
    echoed: bool = False
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """A whole choice. ``finish_reason`` is "stop" or "length"."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: str | None
    stop_reason: str | int | None


class Stopped(NamedTuple):
    """A choice that met a stop string, with so many of its tokens."""

    choice: int
    num_tokens: int


class OutputProcessor:
    """The state of one accepted request's output."""

    def __init__(
        self, tokenizer: Tokenizer, request: EngineRequest, options: OutputOptions
    ) -> None:
        self._request = request
        self._echo = options.echo
        stops = StopStrings.of(options.stops)
        self._prompt_rows: list[tuple[int, float, tuple[tuple[int, float], ...]]] = []
        self._choices = [
            _Choice(
                ChoiceText(
                    tokenizer,
                    stops=stops,
                    min_tokens=request.sampling.min_tokens,
                    continuation=options.continuation and not options.echo,
                )
            )
            for _ in range(request.n)
        ]
        self._stopped: list[Stopped] = []
        self.num_cached_tokens = 0

    @property
    def finished(self) -> bool:
        return all(choice.finish_reason for choice in self._choices)

    @property
    def num_completion_tokens(self) -> int:
        return sum(choice.text.num_tokens for choice in self._choices)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        return tuple(choice.finish_reason or "" for choice in self._choices)

    def take_stopped(self) -> Sequence[Stopped]:
        """The choices that met a stop string since the last call: the engine is to be told."""
        stopped, self._stopped = self._stopped, []
        return stopped

    def feed(self, event: Event) -> Delta | None:
        """What the event adds to a choice; None where it adds nothing that can be shown yet.

        Raises:
            QuireError: the engine ended the choice with an error, or by itself without a result.
        """
        if isinstance(event, PromptOutput):
            self._add_prompt(event)
            return None
        return self._add_output(event)

    def _add_prompt(self, event: PromptOutput) -> None:
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        if event.logprobs is not None:
            known = event.first_position - 1  # position 0 has no row
            del self._prompt_rows[known:]
            self._prompt_rows.extend(unpack(event.logprobs))

    def _add_output(self, event: ChoiceOutput) -> Delta | None:
        choice = self._choices[event.choice]
        if choice.finish_reason is not None:
            return None
        _raise_failure(event)
        before = choice.text.num_tokens
        if self._echo and not choice.echoed:
            choice.echoed = True
            self._add_echo(choice.text)
        self._add_tokens(choice.text, event)
        self._finish(choice, event)
        text, logprobs = choice.text.take(ended=choice.finish_reason is not None)
        delta = Delta(
            event.choice,
            text,
            logprobs,
            choice.text.num_tokens - before,
            choice.finish_reason,
            choice.stop_reason,
        )
        return None if delta.is_empty else delta

    def _add_echo(self, text: ChoiceText) -> None:
        wanted = self._request.sampling.prompt_logprobs is not None
        for position, token_id in enumerate(self._request.prompt_token_ids):
            score: Score | None = None
            if wanted and position == 0:
                score = None, ()
            elif wanted:
                score = self._prompt_rows[position - 1][1:]
            text.add_prompt(token_id, score)

    def _add_tokens(self, text: ChoiceText, event: ChoiceOutput) -> None:
        rows = _rows(event.logprobs)
        last = len(event.token_ids) - 1
        for index, token_id in enumerate(event.token_ids):
            if text.stop is not None:
                return
            row = next(rows, None)
            ends = index == last and event.stop_token_id == token_id
            text.add(token_id, None if row is None else row[1:], visible=not ends)

    def _finish(self, choice: _Choice, event: ChoiceOutput) -> None:
        """Names the choice's end, where it has one. A stop string comes before the engine's."""
        if event.finish_reason is not None:
            choice.text.end()
        if choice.text.stop is not None:
            choice.finish_reason = FinishReason.STOP.value
            choice.stop_reason = choice.text.stop
            if event.finish_reason is None:
                self._stopped.append(Stopped(event.choice, choice.text.num_tokens))
        elif event.finish_reason is not None:
            choice.finish_reason = event.finish_reason.value
            if event.stop_token_id in self._request.sampling.stop_token_ids:
                choice.stop_reason = event.stop_token_id


def _rows(
    arrays: LogprobArrays | None,
) -> Iterator[tuple[int, float, tuple[tuple[int, float], ...]]]:
    return iter(()) if arrays is None else unpack(arrays)


def _raise_failure(event: ChoiceOutput) -> None:
    if event.finish_reason is FinishReason.ERROR:
        reason = event.error_code or EngineError.INTERNAL
        raise QuireError(
            client_error_code(reason),
            event.error_message or "The engine could not finish the request.",
            retry_after=RETRY_AFTER_SECONDS if reason is EngineError.QUEUE_TIMEOUT else None,
        )
    if event.finish_reason is FinishReason.ABORT:
        raise QuireError(
            ErrorCode.ENGINE_UNAVAILABLE, "The server ended the request. Send it again."
        )


@dataclass(slots=True)
class Collector:
    """Joins deltas into whole choices, by their index over all of a request's prompts."""

    num_choices: int
    _deltas: list[list[Delta]] = field(init=False)

    def __post_init__(self) -> None:
        self._deltas = [[] for _ in range(self.num_choices)]

    def add(self, index: int, delta: Delta) -> None:
        self._deltas[index].append(delta)

    def results(self) -> list[ChoiceResult]:
        return [
            ChoiceResult(
                index,
                "".join(delta.text for delta in deltas),
                tuple(entry for delta in deltas for entry in delta.logprobs),
                deltas[-1].finish_reason if deltas else None,
                deltas[-1].stop_reason if deltas else None,
            )
            for index, deltas in enumerate(self._deltas)
        ]

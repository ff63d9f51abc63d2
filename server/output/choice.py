"""One choice's way from tokens to text: decode, look for stop strings, deliver what is certain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.output.logprobs import Score, TokenLogprob
from server.output.places import TokenPlaces
from server.output.stops import StopMatcher, StopStrings
from server.text.stages import Segment
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Delta:
    """What one choice gained. A choice's last Delta has the finish reason.

    ``stop_reason`` is the stop string, or the stop token id that the request named.
    """

    choice: int
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    num_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.logprobs or self.finish_reason)


class ChoiceText:
    """A choice's text as it grows.

    Log-probabilities are delivered with the text that they belong to: one whose token lies wholly
    in text that is held back waits with it, and goes with it if it was a stop string.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stops: StopStrings, min_tokens: int, continuation: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream(continuation=continuation)
        self._places = TokenPlaces(tokenizer)
        self._matcher = StopMatcher(stops)
        self._min_tokens = min_tokens
        self._delivered = 0
        self._text: list[str] = []
        self._num_prompt = 0  # tokens of an echoed prompt
        self.num_tokens = 0  # generated, up to and including one that completes a stop string

    @property
    def stop(self) -> str | None:
        return self._matcher.stop

    def add_prompt(self, token_id: int, score: Score | None) -> None:
        """One token of an echoed prompt: no stop string is looked for in its text."""
        self._num_prompt += 1
        self._decode(token_id, score, visible=True)

    def add(self, token_id: int, score: Score | None, *, visible: bool = True) -> None:
        """One generated token; the one that ended the choice is not ``visible`` as text."""
        self.num_tokens += 1
        self._decode(token_id, score, visible=visible)

    def end(self) -> None:
        """No more tokens come. What was held back is text, or completes a stop string after all."""
        if self.stop is None:
            self._place(self._decoder.flush_numbered())
        if self.stop is None:
            self._places.end()
            self._deliver(self._matcher.flush())

    def take(self, *, ended: bool) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What became certain since the last call."""
        text = "".join(self._text)
        self._text.clear()
        everything = ended and self.stop is None
        return text, self._places.take(None if everything else self._delivered)

    def _decode(self, token_id: int, score: Score | None, *, visible: bool) -> None:
        number = self._places.add(token_id, score)
        piece = self._tokenizer.text_piece(token_id) if visible else None
        if piece is not None:
            self._place(self._decoder.feed_numbered(number, piece))
        self._places.settle(holding=self._decoder.holding)

    def _place(self, segments: Sequence[Segment]) -> None:
        generated: list[str] = []
        for number, text in segments:
            self._places.place(number, text)
            if number < self._num_prompt:
                self._deliver(text)
            else:
                generated.append(text)
        if generated:
            armed = self.num_tokens >= self._min_tokens
            self._deliver(self._matcher.feed("".join(generated), armed=armed))

    def _deliver(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._delivered += len(text)

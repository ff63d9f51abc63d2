"""One choice's way from tokens to text: decode, look for stop strings, deliver what is certain."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from server.output.logprobs import TokenLogprob
from server.output.stops import StopMatcher
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
        self, tokenizer: Tokenizer, *, stops: tuple[str, ...], min_tokens: int, continuation: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream(continuation=continuation)
        self._matcher = StopMatcher(stops)
        self._min_tokens = min_tokens
        self._decoded = 0  # characters, held back or not
        self._delivered = 0
        self._text: list[str] = []
        self._waiting: deque[TokenLogprob] = deque()
        self.num_tokens = 0  # generated, up to and including one that completes a stop string

    @property
    def stop(self) -> str | None:
        return self._matcher.stop

    @property
    def offset(self) -> int:
        """Where the next token's text begins."""
        return self._decoded

    def add_prompt(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """One token of an echoed prompt: no stop string is looked for in it."""
        self._queue(logprob)
        text = self._decode(token_id)
        self._deliver(text)

    def add(self, token_id: int, logprob: TokenLogprob | None, *, visible: bool = True) -> None:
        """One generated token; the one that ended the choice is not ``visible`` as text."""
        self.num_tokens += 1
        self._queue(logprob)
        text = self._decode(token_id) if visible else ""
        self._deliver(self._matcher.feed(text, armed=self.num_tokens >= self._min_tokens))

    def end(self) -> None:
        """No more tokens come. What was held back is text, or completes a stop string after all."""
        if self.stop is None:
            text = self._decoder.flush()
            self._decoded += len(text)
            self._deliver(self._matcher.feed(text, armed=self.num_tokens >= self._min_tokens))
        if self.stop is None:
            self._deliver(self._matcher.flush())

    def take(self, *, ended: bool) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What became certain since the last call."""
        text = "".join(self._text)
        self._text.clear()
        ready: list[TokenLogprob] = []
        everything = ended and self.stop is None
        while self._waiting and (everything or self._waiting[0].offset < self._delivered):
            ready.append(self._waiting.popleft())
        return text, tuple(ready)

    def _queue(self, logprob: TokenLogprob | None) -> None:
        if logprob is not None:
            self._waiting.append(logprob)

    def _decode(self, token_id: int) -> str:
        piece = self._tokenizer.text_piece(token_id)
        text = "" if piece is None else self._decoder.feed(piece)
        self._decoded += len(text)
        return text

    def _deliver(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._delivered += len(text)

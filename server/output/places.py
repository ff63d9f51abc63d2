"""Where in a choice's text each token's own text begins, and what that text is.

A decoder may hold a token's text back and give it later, with that of others; it numbers what it
gives. A token without text of its own (a special one, or all but the last part of a character)
begins where the next text begins:

    tokens    <s>   a   <0xE6> <0xB7> <0xB1>   b
    text            a                  深      b
    offset     0    0     1      1      1      2
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from server.output.logprobs import Score, TokenLogprob, bytes_name, token_name
from server.text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Token:
    """A scored token whose text may not be whole yet. ``offset`` is None until it has some."""

    number: int
    token_id: int
    score: Score
    offset: int | None = None
    text: str = ""


class TokenPlaces:
    """The scored tokens of one choice, from their arrival until they are delivered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._count = 0
        self._end = 0  # characters of text so far
        self._open: deque[_Token] = deque()
        self._settled: deque[TokenLogprob] = deque()

    def add(self, token_id: int, score: Score | None) -> int:
        """The next token; its number. ``score`` None: only its text counts."""
        number, self._count = self._count, self._count + 1
        if score is not None:
            self._open.append(_Token(number, token_id, score))
        return number

    def place(self, number: int, text: str) -> None:
        """Text of the token ``number`` follows the text so far."""
        if not text:
            return
        while self._open and self._open[0].number < number:
            self._settle_first()
        if self._open and self._open[0].number == number:
            token = self._open[0]
            token.offset = self._end if token.offset is None else token.offset
            token.text += text
        self._end += len(text)

    def settle(self, *, holding: bool) -> None:
        """The tokens added so far have all their text, but for what the decoder is ``holding``."""
        while self._open and self._open[0].offset is not None:
            if holding and self._name(self._open[0]) is not None:
                return
            self._settle_first()

    def end(self) -> None:
        """No more text comes at all."""
        while self._open:
            self._settle_first()

    def take(self, below: int | None) -> tuple[TokenLogprob, ...]:
        """Those that begin before the character ``below``; None takes all that are settled."""
        ready: list[TokenLogprob] = []
        while self._settled and (below is None or self._settled[0].offset < below):
            ready.append(self._settled.popleft())
        return tuple(ready)

    def _settle_first(self) -> None:
        token = self._open.popleft()
        logprob, top = token.score
        offset = self._end if token.offset is None else token.offset
        name = self._name(token)
        self._settled.append(TokenLogprob(token.token_id, logprob, top, offset, name))

    def _name(self, token: _Token) -> str | None:
        """What the token is called here, where that is not its usual name: its text in this place,
        such as that of a first word, which lost its space; the byte that was no character."""
        usual = token_name(self._tokenizer, token.token_id)
        if token.text.startswith(usual) or not token.text:
            return None
        spelled = self._tokenizer.token_bytes(token.token_id)
        if usual == bytes_name(spelled):
            return None
        return bytes_name(spelled) if set(token.text) == {"\ufffd"} else token.text

"""What must come out, worked out without the engine: each choice as if it ran alone.

Shares nothing with the product but the request types and the fake model's arithmetic.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from server.engine.request import EngineRequest, SamplingParams
from tests.engine.engine_story import prompt_scores
from tests.engine.fake_model import extend_prefix, model_token


def fingerprint(tokens: tuple[int, ...]) -> int:
    prefix = 0
    for token in tokens:
        prefix = extend_prefix(prefix, token)
    return prefix


@dataclass
class SoloRun:
    """A choice run alone: its tokens, how it ends, and the id that ended it."""

    token_ids: list[int]
    reason: str
    stop_token_id: int | None = None


def solo_run(
    prompt: tuple[int, ...], sampling: SamplingParams, choice: int, eos: tuple[int, ...], vocab: int
) -> SoloRun:
    """Recomputes everything for every token. A prompt id >= vocab makes the logits non-finite."""
    if any(token >= vocab for token in prompt):
        return SoloRun([], "error")
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(eos))
    generated: list[int] = []
    while len(generated) < sampling.max_tokens:
        forbidden = stops if len(generated) < sampling.min_tokens else set()
        prefix = fingerprint(prompt + tuple(generated))
        token = model_token(prefix, sampling, choice, vocab, forbidden)
        was_allowed = len(generated) >= sampling.min_tokens
        generated.append(token)
        if was_allowed and token in stops:
            return SoloRun(generated, "stop", token)
    return SoloRun(generated, "length")


@dataclass
class Choice:
    """What one choice has delivered, beside what it has to."""

    solo: SoloRun
    delivered: list[int] = field(default_factory=list)
    logprobs: list[tuple[int, float]] = field(default_factory=list)
    outcome: str = ""  # "" while live; a finish reason, or "silent" after finish()


@dataclass
class Promise:
    """One accepted request, as the client sees it."""

    request: EngineRequest
    arrival: int
    arrival_time: float
    deadline: float
    choices: list[Choice]
    was_scheduled: bool = False
    prompt_announced: bool = False
    was_aborted: bool = False
    num_failed_steps: int = 0
    prompt_logprobs: list[tuple[int, float]] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        return any(not choice.outcome for choice in self.choices)

    @property
    def rank(self) -> tuple[float, int]:
        """Ten seconds of waiting are worth one level of priority."""
        return (self.arrival_time + 10.0 * self.request.priority, self.arrival)

    def expected_prompt_logprobs(self) -> list[tuple[int, float]]:
        return prompt_scores(self.request.prompt_token_ids)


Content = tuple[tuple[int, str, str, int], tuple[int, ...]]


@dataclass
class BlockContents:
    """Which full prefix each block holds, as completed steps wrote it. No eviction, no hashing."""

    by_block: dict[int, Content] = field(default_factory=dict)

    def overwrite(self, block: int, content: Content | None) -> None:
        self.by_block.pop(block, None)
        if content is not None:
            self.by_block[block] = content

    def blocks_with(self, content: Content) -> list[int]:
        return [block for block, held in self.by_block.items() if held == content]


@dataclass
class Visits:
    """How often each rule ran, each state was seen, and each noteworthy thing happened."""

    rules: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)

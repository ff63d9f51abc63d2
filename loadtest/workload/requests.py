"""Scenario -> request bodies, one after another, the same for the same seed.

Prompts of token ids have exactly the length asked for whatever the tokenizer is; ids are drawn from
a range that every vocabulary has. Prompts of text are common short words, about a token each; the
server's usage says how many they became.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loadtest.workload.scenario import Scenario

# Beyond single bytes and special tokens at the start of most vocabularies, and within small ones.
FIRST_ID, LAST_ID = 300, 3_999
_IDS = range(FIRST_ID, LAST_ID + 1)
_TEXT = (
    "the of and to in that is was for on are with as at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up "
    "other about out many then them these so some her would make like him into time has look two "
    "more write go see number no way could people my than first water been call who oil its now "
    "find long down day did get come made may part"
)
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Job:
    """One request to send. A conversation's later turns have ``turn`` > 0 and follow its first."""

    index: int
    body: dict[str, Any]
    prompt_tokens: int | None  # where they are known before the server counts them
    output_tokens: int
    kind: int  # place in the scenario's mix
    group: int  # of prefixes
    turns_left: int = 0
    seed: int = 0


class Workload:
    """Jobs of a scenario. ``model`` is the name to ask for; None leaves the field out."""

    def __init__(self, scenario: Scenario, model: str | None) -> None:
        self._scenario = scenario
        self._model = model
        self._prefixes: dict[tuple[int, int], list[Any]] = {}

    def jobs(self) -> Iterator[Job]:
        """Never ends."""
        index = 0
        while True:
            yield self.job(index)
            index += 1

    def job(self, index: int) -> Job:
        """The job of that number: a function of it and the seed alone, in whatever order asked."""
        draw = random.Random(f"{self._scenario.seed}:{index}")
        kinds = self._scenario.kinds
        (place,) = draw.choices(range(len(kinds)), [kind.weight for kind in kinds])
        kind = kinds[place]
        prompt_length, output_length = kind.prompt.draw(draw), kind.output.draw(draw)
        return self.job_of(index, place, draw, prompt_length, output_length)

    def job_of(
        self,
        index: int,
        place: int,
        draw: random.Random,
        prompt_length: int,
        output_length: int,
        group: int | None = None,
        shared: int | None = None,
    ) -> Job:
        """A job with given lengths, and a given prefix where a trace names its group and length."""
        kind = self._scenario.kinds[place]
        group = draw.randrange(kind.prefix_groups) if group is None else group
        if shared is None:
            shared = min(kind.shared_prefix_tokens, max(0, prompt_length - 1))
        parts = self._prefix(place, group, shared)
        parts += self._parts(draw, prompt_length - len(parts))
        seed = draw.randrange(2**31)
        return Job(
            index=index,
            body=self._body(parts, output_length, seed),
            prompt_tokens=len(parts) if self._scenario.prompt_form == "tokens" else None,
            output_tokens=output_length,
            kind=place,
            group=group,
            turns_left=kind.turns - 1,
            seed=seed,
        )

    def next_turn(self, job: Job, answer: str) -> Job:
        """The turn after ``job``: what was said, the answer, and a new question."""
        draw = random.Random(f"{job.seed}:{job.turns_left}")
        kind = self._scenario.kinds[job.kind]
        question = " ".join(self._parts(draw, kind.prompt.draw(draw)))
        said = [
            *job.body["messages"],
            {"role": "assistant", "content": answer},
            {"role": "user", "content": question},
        ]
        return Job(
            index=job.index,
            body={**job.body, "messages": said},
            prompt_tokens=None,
            output_tokens=job.output_tokens,
            kind=job.kind,
            group=job.group,
            turns_left=job.turns_left - 1,
            seed=job.seed,
        )

    def _body(self, parts: list[Any], output_length: int, seed: int) -> dict[str, Any]:
        scenario = self._scenario
        text = parts if scenario.prompt_form == "tokens" else " ".join(parts)
        body: dict[str, Any] = {}
        if self._model is not None:
            body["model"] = self._model
        if scenario.api == "chat":
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        body |= {"max_tokens": output_length, "stream": scenario.stream, "seed": seed}
        if scenario.stream:
            body["stream_options"] = {"include_usage": True}
        if scenario.ignore_eos:
            body["ignore_eos"] = True
        return body | dict(scenario.fields)

    def _prefix(self, place: int, group: int, length: int) -> list[Any]:
        """The first parts of the group's prefix, which is drawn as far as it was ever asked for."""
        if not length:
            return []
        key = (place, group)
        if len(self._prefixes.get(key, ())) < length:
            draw = random.Random(f"{self._scenario.seed}:prefix:{place}:{group}")
            self._prefixes[key] = self._parts(draw, length)
        return self._prefixes[key][:length]

    def _parts(self, draw: random.Random, count: int) -> list[Any]:
        if self._scenario.prompt_form == "tokens":
            return draw.choices(_IDS, k=count)
        return draw.choices(_WORDS, k=count)

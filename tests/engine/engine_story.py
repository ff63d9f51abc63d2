"""One small engine that a story is told with: a fake model, a clock that stands still, no threads.

Every story checks every invariant after every change (strict mode), and every block that a row
reads (the fake executor). What is left to say is what the story is about.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from server.engine.constraints import TokenConstraints
from server.engine.core import EngineCore
from server.engine.engine_config import SchedulerConfig
from server.engine.events import ChoiceOutput, EngineFrame, PromptOutput, Refused, StepStats
from server.engine.prefix_cache import Digest, sha256_digest
from server.engine.request import EngineRequest, SamplingParams, Task
from server.engine.sequence import Sequence as LiveSequence
from server.engine.step import OutOfMemoryEvent, StepInFlight
from server.engine.step_plan import LogprobArrays, StepPlan
from tests.engine.fake_executor import FakeExecutor, kv_spec
from tests.engine.fake_model import extend_prefix, model_logprob, model_token

VOCAB = 1000


def prompt(length: int, start: int = 1) -> tuple[int, ...]:
    """``length`` tokens in a row; prompts with other starts have no common prefix."""
    return tuple(range(start, start + length))


def solo(
    tokens: Sequence[int], count: int, *, seed: int = 0, choice: int = 0, vocab: int = VOCAB
) -> tuple[int, ...]:
    """The ``count`` tokens that the fake model says after ``tokens``, all recomputed."""
    known = list(tokens)
    for _ in range(count):
        prefix = 0
        for token in known:
            prefix = extend_prefix(prefix, token)
        known.append(model_token(prefix, SamplingParams(seed=seed), choice, vocab))
    return tuple(known[len(tokens) :])


def own_logprobs(arrays: LogprobArrays | None) -> list[tuple[int, float]]:
    """Column 0: each position's own token and its log-probability."""
    assert arrays is not None
    count = arrays.num_positions * arrays.width
    ids = struct.unpack(f"<{count}i", arrays.token_ids)
    values = struct.unpack(f"<{count}f", arrays.logprobs)
    return list(zip(ids[:: arrays.width], values[:: arrays.width], strict=True))


def prompt_scores(tokens: Sequence[int]) -> list[tuple[int, float]]:
    """What every prompt token but the first scores."""
    prefix, scores = 0, []
    for position, token in enumerate(tokens):
        if position:
            scores.append((token, model_logprob(prefix, token)))
        prefix = extend_prefix(prefix, token)
    return scores


class Story:
    """Blocks of 4 tokens, and limits wide enough that only what a story narrows can matter."""

    def __init__(
        self,
        *,
        num_blocks: int = 16,
        block_size: int = 4,
        windows: Sequence[int | None] = (None,),
        poison: tuple[int, ...] = (),
        digest: Digest = sha256_digest,
        overlaps: bool = False,
        constraints: TokenConstraints | None = None,
        prefix_caching: bool = True,
        tasks: frozenset[Task] = frozenset({Task.GENERATE}),
        decode_steps: int = 1,
        **limits: Any,
    ) -> None:
        wide: dict[str, Any] = {
            "max_num_seqs": 4,
            "max_num_batched_tokens": 64,
            "max_model_len": 64,
            "max_logit_rows": 64,
            "max_queued_requests": 8,
            "max_queued_tokens": 512,
            "queue_timeout_s": 60.0,
        }
        self.limits = SchedulerConfig(**(wide | limits))
        self.now = 0.0
        spec = kv_spec(num_blocks, block_size, windows)
        self.executor = FakeExecutor(
            spec,
            vocab=VOCAB,
            eos_token_ids=self.limits.eos_token_ids,
            poison_tokens=poison,
            overlaps=overlaps,
            supported_tasks=tasks,
            decode_steps=decode_steps,
        )
        self.shortages: list[OutOfMemoryEvent] = []
        self.core = EngineCore(
            self.executor,
            spec,
            self.limits,
            prefix_caching=prefix_caching,
            clock=lambda: self.now,
            strict=True,
            digest=digest,
            constraints=constraints,
            on_shortage=self.shortages.append,
        )
        self.state = self.core.scheduler.state
        self.pool = self.state.kv.pool
        self.prompts: list[PromptOutput] = []
        self.choices: list[ChoiceOutput] = []
        self.refused: list[Refused] = []
        self.stats: list[StepStats] = []

    # -- asking ------------------------------------------------------------------------------

    @staticmethod
    def request(
        name: str,
        tokens: Sequence[int],
        *,
        task: Task = Task.GENERATE,
        n: int = 1,
        priority: int = 0,
        salt: str = "",
        adapter: tuple[str, int] = ("", 0),
        timeout_s: float | None = None,
        reports_memory: bool = False,
        **sampling: Any,
    ) -> EngineRequest:
        return EngineRequest(
            name,
            tuple(tokens),
            SamplingParams(**({"seed": 0, "max_tokens": 2} | sampling)),
            task=task,
            n=n,
            priority=priority,
            adapter_id=adapter[0],
            adapter_version=adapter[1],
            cache_salt=salt,
            timeout_s=timeout_s,
            reports_memory=reports_memory,
        )

    def ask(self, name: str, tokens: Sequence[int], **wishes: Any) -> None:
        self.core.submit([self.request(name, tokens, **wishes)])

    # -- stepping ----------------------------------------------------------------------------

    def begin(self) -> StepInFlight:
        step = self.core.begin_step()
        assert step is not None, "there is something to compute"
        return step

    def end(self, step: StepInFlight) -> EngineFrame:
        return self._note(self.core.end_step(step))

    def step(self) -> EngineFrame:
        frame = self.core.step()
        assert frame is not None, "there is something to do"
        return self._note(frame)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def run(self) -> None:
        """To the end of everything."""
        for _ in range(500):
            if not self.core.has_work:
                return
            self.step()
        raise AssertionError("the engine comes to an end")

    @property
    def num_discarded(self) -> int:
        """Tokens that were chosen for nobody."""
        return sum(stats.num_discarded_tokens for stats in self.stats)

    def _note(self, frame: EngineFrame) -> EngineFrame:
        assert not self.executor.violations
        self.prompts += frame.prompts
        self.choices += frame.choices
        self.refused += frame.refused
        if frame.stats is not None:
            self.stats.append(frame.stats)
        return frame

    # -- what happened -----------------------------------------------------------------------

    @property
    def plan(self) -> StepPlan:
        """The last plan that the executor was given."""
        return self.executor.plans[-1]

    def chunks(self) -> dict[int, int]:
        """Tokens a row in the last plan."""
        return {row.row: row.num_scheduled_tokens for row in self.plan.rows}

    def tokens(self, name: str, choice: int = 0) -> tuple[int, ...]:
        """All that a choice was sent."""
        return tuple(
            token
            for output in self.choices
            if (output.request_id, output.choice) == (name, choice)
            for token in output.token_ids
        )

    def ending(self, name: str, choice: int = 0) -> ChoiceOutput:
        """The one event that ended a choice."""
        (last,) = (
            output
            for output in self.choices
            if (output.request_id, output.choice) == (name, choice) and output.finish_reason
        )
        return last

    def endings(self) -> list[tuple[str, int, str]]:
        """(request, choice, reason), in the order in which they were told."""
        return [
            (output.request_id, output.choice, output.finish_reason.value)
            for output in self.choices
            if output.finish_reason
        ]

    def hit(self, name: str) -> int:
        """Cached tokens that the request was told of when it was first scheduled."""
        (first,) = (p for p in self.prompts if p.request_id == name and p.logprobs is None)
        return first.num_cached_tokens

    def sequence(self, name: str, choice: int = 0) -> LiveSequence:
        return self.state.requests[name].sequences[choice]

    def table(self, name: str, choice: int = 0, group: int = 0) -> list[int]:
        return list(self.sequence(name, choice).block_tables[group])

    def states(self) -> dict[tuple[str, int], str]:
        return {
            (request.id, sequence.choice): sequence.state.value
            for request in self.state.requests.values()
            for sequence in request.sequences
        }

    def blocks(self) -> tuple[int, int, int, int]:
        """(active, reserved for a step in flight, cached, free)"""
        gauges = self.core.gauges()
        return (
            gauges.blocks_active,
            gauges.blocks_reserved,
            gauges.blocks_cached,
            gauges.blocks_free,
        )

    def queue(self) -> tuple[int, int, int]:
        """(running requests, waiting requests, tokens that wait)"""
        gauges = self.core.gauges()
        return gauges.requests_running, gauges.requests_waiting, gauges.waiting_tokens

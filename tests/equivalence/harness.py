"""The real engine, scheduler and runner in one process, and what a workload gave when it ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import kernels
from server.engine.core import EngineCore
from server.engine.engine_config import EngineConfig
from server.engine.events import EngineFrame, StepStats
from server.engine.request import EngineRequest, FinishReason
from server.engine.step_plan import LogprobArrays
from server.execution.build import BuiltRunner, build_runner
from tests.engine_configs import engine_config
from tests.equivalence import rounding
from tests.execution.stepping import unpack_logprobs

MAX_TOKENS = 512  # the layout's largest step; a run may take a smaller budget
ChoiceKey = tuple[str, int]
OnStep = Callable[[EngineCore, int], None]


@dataclass
class Choice:
    """One choice as a client would have seen it."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass
class Run:
    """What came of a workload, and the steps that it took."""

    choices: dict[ChoiceKey, Choice] = field(default_factory=dict)
    prompts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    stats: list[StepStats] = field(default_factory=list)
    preemptions: int = 0
    block_copies: int = 0

    @property
    def prefix_hit_tokens(self) -> int:
        return sum(step.prefix_hit_tokens for step in self.stats)

    @property
    def mixed_steps(self) -> int:
        """Steps that computed prompt tokens beside decoded ones."""
        return sum(bool(step.num_prompt_tokens and step.num_decode_tokens) for step in self.stats)

    @property
    def most_rows(self) -> int:
        return max(step.num_rows for step in self.stats)

    @property
    def prompt_steps(self) -> int:
        return sum(step.num_prompt_tokens > 0 for step in self.stats)

    def take(self, frame: EngineFrame) -> None:
        if frame.stats is not None:
            self.stats.append(frame.stats)
        for prompt in frame.prompts:
            if prompt.logprobs is not None:
                self.prompts.setdefault(prompt.request_id, []).append(_nats(prompt.logprobs))
        for output in frame.choices:
            choice = self.choices.setdefault((output.request_id, output.choice), Choice())
            choice.token_ids += output.token_ids
            if output.logprobs is not None:
                choice.logprobs.append(_nats(output.logprobs))
            choice.finish_reason = output.finish_reason or choice.finish_reason
        assert not frame.refused, frame.refused


def runner_config(block_size: int, num_tokens: int, **changes: object) -> EngineConfig:
    """For the workloads, with a pool of ``num_tokens`` tokens."""
    sizes = {"max_num_seqs": 16, "max_num_batched_tokens": MAX_TOKENS, "max_logit_rows": MAX_TOKENS}
    pool = {"block_size": block_size, "num_blocks": num_tokens // block_size}
    return engine_config(**(sizes | pool | {"max_model_len": 256, "max_logprobs": 8} | changes))


def built_runner(
    folder: Path, *, block_size: int = 16, num_tokens: int = 4096, **changes: object
) -> BuiltRunner:
    """A poisoned runner whose pool holds ``num_tokens`` tokens."""
    config = runner_config(block_size, num_tokens, **changes)
    return build_runner(folder, config, poison=True, warm_up=False)


def run(
    built: BuiltRunner,
    requests: Sequence[EngineRequest],
    *,
    budget: int = MAX_TOKENS,
    prefix_caching: bool = False,
    on_step: OnStep | None = None,
    one_by_one: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Run:
    """Runs the requests to their ends, together or one after the other, invariants checked.

    By a ``clock`` that stands still steps take no time, and give as many tokens as they may.
    """
    config = replace(
        built.layout.config.scheduler,
        max_num_batched_tokens=budget,
        max_logit_rows=budget,
        max_preemptions=1000,
        eos_token_ids=built.eos_token_ids,
    )
    core = EngineCore(
        built.runner, built.kv, config, prefix_caching=prefix_caching, strict=True, clock=clock
    )
    outcome = Run()
    groups = [[request] for request in requests] if one_by_one else [list(requests)]
    for group in groups:
        core.submit(group)
        _run_to_end(core, outcome, on_step)
    outcome.preemptions = core.gauges().preemptions
    assert core.gauges().blocks_active == 0
    return outcome


def _run_to_end(core: EngineCore, outcome: Run, on_step: OnStep | None) -> None:
    while core.has_work:
        frame = core.step()
        assert frame is not None, "the engine stalled"
        outcome.take(frame)
        assert core.gauges().failed_steps == 0, "a step raised"
        if on_step is not None:
            on_step(core, len(outcome.stats))


@contextmanager
def disturbed_logits(nats: float) -> Iterator[None]:
    """The chosen token of every row has ``nats`` less, the others as many more: who is chosen then
    too is chosen by no less than 2 ``nats``. The choice that counts is the one made so."""
    real = kernels.sample

    def sample(logits: torch.Tensor, params: kernels.SamplingTensors) -> kernels.SampleOutput:
        chosen = real(logits, params).token_ids
        worse = logits + nats
        worse[torch.arange(len(logits)), chosen] -= 2 * nats
        return real(worse, params)

    kernels.sample = sample
    try:
        yield
    finally:
        kernels.sample = real


def assert_equal(run: Run, reference: Run) -> None:
    """The same tokens and ends, log-probabilities as near as rounding leaves them."""
    assert run.choices.keys() == reference.choices.keys()
    for key, expected in reference.choices.items():
        got = run.choices[key]
        assert got.finish_reason is expected.finish_reason, key
        assert got.finish_reason is not FinishReason.ERROR, key
        assert got.token_ids == expected.token_ids, key
        assert_nats_equal(got.logprobs, expected.logprobs)
    assert run.prompts.keys() == reference.prompts.keys()
    for request_id, nats in reference.prompts.items():
        assert_nats_equal(run.prompts[request_id], nats)


def assert_nats_equal(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    assert bool(got) == bool(expected)
    if expected:
        mine, theirs = np.concatenate(got), np.concatenate(expected)
        np.testing.assert_allclose(mine, theirs, atol=rounding.APART, rtol=0)


def _nats(arrays: LogprobArrays) -> np.ndarray:
    nats = unpack_logprobs(arrays)[1]
    assert np.isfinite(nats).all()
    return nats

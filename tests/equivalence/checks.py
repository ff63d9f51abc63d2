"""The equivalences, each a function that raises AssertionError where an answer differs.

Every check first runs its workload the plain way (one request at a time, whole prompts, no prefix
cache), then the other way, and asserts that the thing it is about really happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kernels import derive_key
from server.engine.core import EngineCore
from server.engine.request import EngineRequest
from server.execution import rows
from tests.equivalence import harness, rounding, workloads
from tests.equivalence.checkpoints import KINDS as KINDS
from tests.equivalence.checkpoints import SPECS as SPECS
from tests.equivalence.checkpoints import write as write
from tests.equivalence.harness import Run
from tests.parity import oracle


@dataclass(frozen=True)
class Setting:
    """A checkpoint to check with, its cache's block size, and what computes in which numbers, with
    matrices in which."""

    folder: Path
    block_size: int = 16
    known: dict[tuple[str, ...], Run] | None = None  # plain runs to use again, by request ids
    backend: str = "torch"
    format: str = "f32"
    quantization: str | None = None
    kv_format: str | None = None  # of the cache; None: that of the numbers

    def plain(self, requests: Sequence[EngineRequest]) -> Run:
        """The workload one request at a time: whole prompts, no prefix cache, no preemption."""
        known = {} if self.known is None else self.known
        names = tuple(request.request_id for request in requests)
        if names not in known:
            known[names] = harness.run(self.built(), requests, one_by_one=True)
        return known[names]

    def built(self, num_tokens: int = 4096) -> harness.BuiltRunner:
        return harness.built_runner(
            self.folder,
            block_size=self.block_size,
            num_tokens=num_tokens,
            backend=self.backend,
            format=self.format,
            quantization=self.quantization,
            kv_format=self.kv_format or self.format,
        )

    def crowded(self, requests: Sequence[EngineRequest], budget: int = 64) -> harness.BuiltRunner:
        """Its pool holds between two and three of the longest of ``requests``."""
        longest = max(len(one.prompt_token_ids) + one.sampling.max_tokens for one in requests)
        kv = self.built(self.block_size).kv
        return self.built(kv.blocks_at_once(1, longest, budget) * 8 // 3 * self.block_size)


def batched_equals_alone(setting: Setting) -> None:
    requests = workloads.mixed()
    together = harness.run(setting.built(), requests)
    assert together.most_rows >= 5
    harness.assert_equal(together, setting.plain(requests))


def chunked_equals_whole(setting: Setting, budget: int = 7) -> None:
    requests = workloads.mixed()
    chunked = harness.run(setting.built(), requests, budget=budget)
    num_prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
    assert chunked.prompt_steps >= num_prompt_tokens // budget
    if budget > 1:
        assert chunked.mixed_steps > 0
        assert chunked.most_rows > 1
    harness.assert_equal(chunked, setting.plain(requests))


def cached_equals_uncached(setting: Setting) -> None:
    requests = workloads.prefixed()
    cached = harness.run(setting.built(), requests, prefix_caching=True, one_by_one=True)
    assert cached.prefix_hit_tokens >= 2 * 64  # two prompts meet at least 64 tokens of the stem
    harness.assert_equal(cached, setting.plain(requests))
    together = harness.run(setting.built(), requests, prefix_caching=True, budget=50)
    harness.assert_equal(together, setting.plain(requests))


def preempted_equals_not(setting: Setting, every: int = 2, prefix_caching: bool = False) -> None:
    requests = workloads.mixed()
    counts: Counter[str] = Counter()
    preempted = harness.run(
        setting.built(),
        requests,
        budget=64,
        prefix_caching=prefix_caching,
        on_step=_preempting(every, counts),
    )
    long_ones = {one.request_id for one in requests if one.sampling.max_tokens > 8 * every}
    assert long_ones <= counts.keys()
    assert preempted.preemptions == counts.total() > 0
    assert preempted.mixed_steps > 0
    harness.assert_equal(preempted, setting.plain(requests))


def short_of_blocks_equals_plenty(setting: Setting) -> None:
    """Preemption as it comes by itself: the pool holds a few of the rows."""
    requests = workloads.growing()
    crowded = harness.run(setting.crowded(requests), requests, budget=64)
    assert crowded.preemptions > 0
    harness.assert_equal(crowded, setting.plain(requests))


def choices_equal_separate_requests(setting: Setting) -> None:
    """Choice i is what a request of its own would get whose key is derived from (seed, i)."""
    (request,) = workloads.several_choices()
    forked = harness.run(setting.built(), [request])
    assert forked.most_rows == request.n
    alone = [
        replace(request, request_id=str(i), n=1, sampling=replace(request.sampling, seed=1000 + i))
        for i in range(request.n)
    ]
    with _keys(lambda seed, choice: derive_key(request.sampling.seed, seed - 1000)):
        separate = setting.plain(alone)
    by_choice = {("choices", int(name)): got for (name, _), got in separate.choices.items()}
    harness.assert_equal(forked, replace(separate, choices=by_choice))
    assert len({tuple(choice.token_ids) for choice in forked.choices.values()}) == request.n


def _preempting(every: int, counts: Counter[str]) -> harness.OnStep:
    """Every ``every`` steps, sends back the running request that was sent back least often.

    Only those that have generated something: a resumed row must get its tokens' effects back.
    """

    def on_step(core: EngineCore, steps: int) -> None:
        if steps % every:
            return
        running = core.scheduler.state.running
        names = {row.request.id for row in running if row.num_generated_tokens}
        if names:
            name = min(names, key=lambda name: (counts[name], name))
            counts[name] += core.scheduler.preempt(name, 0)

    return on_step


class _keys:
    """Swaps the derivation of keys for as long as it is entered."""

    def __init__(self, derive: Callable[[int, int], int]) -> None:
        self._derive = derive

    def __enter__(self) -> None:
        self._before = rows.derive_key
        rows.derive_key = self._derive

    def __exit__(self, *_: object) -> None:
        rows.derive_key = self._before


def near_the_exact_answer(setting: Setting) -> None:
    """Alone and whole, an answer is what float64 gives but for rounding, in either direction: were
    it far nearer than ``rounding`` allows, that would allow too much."""
    model = oracle.load(setting.folder, torch.float64)
    errors = []
    for requests in (workloads.mixed(), workloads.prefixed(), workloads.growing()):
        prompts = {request.request_id: request.prompt_token_ids for request in requests}
        for (name, _), choice in setting.plain(requests).choices.items():
            if choice.logprobs:
                ids = [*prompts[name], *choice.token_ids]
                logits = oracle.logits(model, ids, torch.float64)[len(prompts[name]) - 1 : -1]
                assert float(logits.abs().max()) <= rounding.LARGEST_LOGIT
                exact = logits.log_softmax(-1)[np.arange(len(logits)), choice.token_ids].numpy()
                errors.append(np.abs(np.concatenate(choice.logprobs)[:, 0] - exact).max())
    assert rounding.FROM_EXACT / 20 < max(errors) < rounding.FROM_EXACT


def no_choice_is_within_rounding(setting: Setting) -> None:
    """Tokens that rounding could turn would be equal on one processor and not on another."""
    for requests in (workloads.mixed(), workloads.prefixed(), workloads.growing()):
        with harness.disturbed_logits(rounding.APART):
            disturbed = harness.run(setting.built(), requests, one_by_one=True)
        for key, choice in setting.plain(requests).choices.items():
            assert disturbed.choices[key].token_ids == choice.token_ids, key


CHECKS: dict[str, Callable[[Setting], None]] = {
    "batched equals alone": batched_equals_alone,
    "chunked equals whole": chunked_equals_whole,
    "cached equals uncached": cached_equals_uncached,
    "preempted equals not": preempted_equals_not,
    "short of blocks equals plenty": short_of_blocks_equals_plenty,
    "choices equal separate requests": choices_equal_separate_requests,
}

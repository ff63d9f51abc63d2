"""What a request is told of its wait."""

from __future__ import annotations

from dataclasses import replace

from server.engine.core import EngineCore
from server.engine.engine_config import SchedulerConfig
from server.engine.request import EngineRequest, SamplingParams
from tests.engine.fake_executor import FakeExecutor, kv_spec

LIMITS = SchedulerConfig(
    max_num_seqs=1,
    max_num_batched_tokens=64,
    max_model_len=64,
    max_logit_rows=64,
    max_queued_requests=8,
    max_queued_tokens=512,
    queue_timeout_s=60,
)


def test_the_wait_ends_where_the_prompts_own_step_begins() -> None:
    now = 0.0
    spec = kv_spec(num_blocks=16, block_size=4)
    core = EngineCore(FakeExecutor(spec, vocab=32), spec, LIMITS, clock=lambda: now)
    sampling = SamplingParams(seed=0, max_tokens=2)
    core.submit([EngineRequest(name, (1, 2, 3), sampling) for name in ("first", "second")])
    told: dict[str, list[float | None]] = {}
    figures: list[float] = []
    while core.has_work:
        now += 1.0
        frame = core.step()
        assert frame is not None
        for prompt in frame.prompts:
            told.setdefault(prompt.request_id, []).append(prompt.queue_seconds)
        figures += frame.stats.queue_seconds if frame.stats else ()
    assert told == {"first": [1.0], "second": [3.0]}
    assert figures == [1.0, 3.0]


def test_the_oldest_in_the_queue_is_the_first_that_came_and_has_not_run() -> None:
    now = 5.0
    spec = kv_spec(num_blocks=16, block_size=4)
    core = EngineCore(FakeExecutor(spec, vocab=32), spec, LIMITS, clock=lambda: now)
    sampling = SamplingParams(seed=0, max_tokens=8)

    def oldest_s() -> float:
        return core.gauges().oldest_queued_at_us / 1e6

    assert oldest_s() == 0
    for name, priority in (("first", 0), ("second", 1), ("third", 0)):
        core.submit([EngineRequest(name, (1, 2, 3), sampling, priority=priority)])
        now += 1.0
    assert oldest_s() == 5.0
    core.step()  # there is one row, and the first takes it
    assert oldest_s() == 6.0
    core.abort(["second"])
    assert oldest_s() == 7.0
    core.abort(["first", "third"])
    assert oldest_s() == 0


def test_who_ran_and_was_preempted_is_not_the_oldest_in_the_queue() -> None:
    now = 5.0
    spec = kv_spec(num_blocks=4, block_size=4)
    limits = replace(LIMITS, max_num_seqs=2, max_model_len=16)
    core = EngineCore(FakeExecutor(spec, vocab=32), spec, limits, clock=lambda: now)
    sampling = SamplingParams(seed=0, max_tokens=10)
    core.submit([EngineRequest(name, (1, 2, 3), sampling) for name in ("first", "second")])
    while not core.gauges().sequences_preempted:
        assert core.step() is not None
    assert core.gauges().requests_waiting == 1
    assert core.gauges().oldest_queued_at_us == 0
    now = 9.0
    core.submit([EngineRequest("third", (1, 2, 3), sampling)])
    assert core.gauges().oldest_queued_at_us == 9_000_000

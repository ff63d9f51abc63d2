"""The exporter: names, units and label sets that stay, counters that add up, gauges read now."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from server.engine.events import StepStats
from server.host_budget import HostBudget
from server.memory.accounting.reading import NAMES, unflatten
from server.memory.kinds import MemoryKind
from server.metrics.gauges import GaugeSources
from server.metrics.prometheus import PrometheusMetrics
from server.metrics.stats import Outcome, RequestRecord

COMPLETIONS = "/v1/completions"
GAUGES = {
    "requests_running": 2,
    "requests_waiting": 3,
    "sequences_waiting": 5,
    "sequences_preempted": 1,
    "waiting_tokens": 70,
    "blocks_total": 40,
    "blocks_active": 9,
    "blocks_reserved": 1,
    "blocks_cached": 6,
    "blocks_free": 24,
    "kv_tokens_capacity": 640,
    "kv_tokens_reserved": 160,
    "kv_tokens_filled": 150,
}


class World:
    """Sources that a test can change between two scrapes."""

    def __init__(self) -> None:
        self.engine = dict(GAUGES)
        self.reading = {name: i for i, name in enumerate(NAMES, start=1)}
        self.up = True
        self.metrics = PrometheusMetrics(
            GaugeSources(
                engine=lambda: self.engine,
                engine_up=lambda: self.up,
                memory=lambda: unflatten(self.reading) if self.reading else None,
                planned=lambda: {"weights": 11},
                weights=lambda: [("norm", "bf16", 5), ("up", "bf16", 6)],
                host_bytes=lambda: 77,
                api_budget=HostBudget(1000).reading,
                device="cpu",
            )
        )

    def scrape(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = self.metrics.render().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.scrape()[name, tuple(sorted(labels.items()))]


def record(outcome: Outcome = Outcome.STOP, **changes: object) -> RequestRecord:
    fields: dict[str, object] = {
        "request_id": "r1",
        "route": COMPLETIONS,
        "outcome": outcome,
        "status": 200,
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "ttft_s": 0.02,
        "tpot_s": 0.004,
        "e2e_s": 0.04,
    }
    return RequestRecord(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_finished_request_is_counted_once_under_its_outcome() -> None:
    world = World()
    world.metrics.observe_finish(record())
    world.metrics.observe_finish(record(Outcome.INVALID, status=400, prompt_tokens=0))
    counts = {
        outcome: world.value("quire_requests_total", route=COMPLETIONS, outcome=outcome)
        for outcome in Outcome
    }
    assert counts == {**dict.fromkeys(Outcome, 0), Outcome.STOP: 1, Outcome.INVALID: 1}
    assert world.value("quire_request_generation_tokens_sum") == 4
    assert world.value("quire_time_to_first_token_seconds_count") == 2
    assert world.value("quire_request_prompt_tokens_sum") == 10


def test_tokens_are_counted_as_they_come_and_not_again_at_the_end() -> None:
    world = World()
    world.metrics.observe_prompt(10)
    for _ in range(4):
        world.metrics.observe_completion(1)
    assert world.value("quire_prompt_tokens_total") == 10
    assert world.value("quire_generation_tokens_total") == 4
    world.metrics.observe_finish(record())
    assert world.value("quire_prompt_tokens_total") == 10
    assert world.value("quire_generation_tokens_total") == 4


def test_a_step_adds_up() -> None:
    world = World()
    stats = StepStats(7, 3, 20, 2, 1, 30, 16, 0.012, 0.01, 0.001, (0.5, 1.5), 3)
    world.metrics.observe_step(stats)
    world.metrics.observe_step(stats)
    assert world.value("quire_engine_steps_total") == 2
    assert world.value("quire_engine_step_tokens_total", phase="prompt") == 40
    assert world.value("quire_engine_step_tokens_total", phase="decode") == 4
    assert world.value("quire_step_tokens_sum") == 44
    assert world.value("quire_preemptions_total") == 2
    assert world.value("quire_tokens_discarded_total") == 6
    assert world.value("quire_prefix_cache_queries_total") == 60
    assert world.value("quire_prefix_cache_hits_total") == 32
    assert world.value("quire_request_queue_seconds_sum") == 4
    assert world.value("quire_request_queue_seconds_count") == 4


def test_inter_token_gaps_have_buckets_from_half_a_millisecond() -> None:
    world = World()
    world.metrics.observe_inter_token(0.0004, count=3)
    world.metrics.observe_inter_token(0.02)
    name = "quire_inter_token_latency_seconds"
    assert world.value(f"{name}_bucket", le="0.0005") == 3
    assert world.value(f"{name}_count") == 4


def test_gauges_are_those_of_the_moment_of_the_scrape() -> None:
    world = World()
    assert world.value("quire_requests_running") == 2
    assert world.value("quire_kv_cache_usage_ratio") == 10 / 40
    assert world.value("quire_kv_blocks", state="live") == 10
    tokens = {"capacity": 640, "reserved": 160, "filled": 150}
    for state, count in tokens.items():
        assert world.value("quire_kv_tokens", state=state) == count
    assert world.value("quire_kv_blocks", state="cached") == 6
    assert world.value("quire_kv_blocks", state="free") == 24
    assert world.value("quire_sequences_waiting", reason="queued") == 4
    assert world.value("quire_sequences_waiting", reason="preempted") == 1
    world.engine["requests_running"], world.up = 0, False
    assert world.value("quire_requests_running") == 0
    assert world.value("quire_engine_up") == 0


def test_without_a_reading_no_memory_is_called_empty() -> None:
    world = World()
    world.reading.clear()
    names = {name for name, _ in world.scrape()}
    assert "quire_memory_planned_bytes" in names
    absent = {"quire_memory_bytes", "quire_memory_total_bytes", "quire_weights_bytes"}
    assert not absent & names
    assert world.value("quire_host_memory_bytes", what="api_process_resident") > 0


def test_memory_is_exported_by_kind_with_its_peak_and_plan() -> None:
    world = World()
    for kind in MemoryKind:
        held = world.value("quire_memory_bytes", device="cpu", kind=kind)
        assert held == world.reading[kind]
        peak = world.value("quire_memory_peak_bytes", device="cpu", kind=kind)
        assert peak == world.reading[f"{kind}.peak"]
    assert world.value("quire_memory_planned_bytes", device="cpu", kind="weights") == 11
    assert world.value("quire_weights_bytes", device="cpu", component="up", dtype="bf16") == 6
    assert world.value("quire_kv_bytes", use="tail_waste") == world.reading["kv_cache.tail_waste"]
    assert world.value("quire_host_memory_bytes", what="api_process_resident") == 77


def test_names_have_the_prefix_base_units_and_no_colon() -> None:
    names = {name for name, _ in World().scrape()}
    assert all(re.fullmatch(r"quire_[a-z0-9_]+", name) for name in names)
    assert not {name for name in names if re.search(r"_(ms|milliseconds|kb|mb|gb|perc)", name)}
    assert not {name for name in names if name.endswith("_created")}


def test_the_series_are_there_before_the_first_request_and_do_not_grow_with_them() -> None:
    world = World()
    before = set(world.scrape())
    for i in range(50):
        world.metrics.observe_finish(record(request_id=f"r{i}", client_request_id=f"c{i}"))
        world.metrics.observe_inter_token(0.01)
        world.metrics.observe_engine_restart()
    assert set(world.scrape()) == before
    assert world.value("quire_engine_restarts_total") == 50


def test_two_exporters_share_nothing() -> None:
    one, other = World(), World()
    one.metrics.observe_finish(record())
    assert other.value("quire_generation_tokens_total") == 0

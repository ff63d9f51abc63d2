"""What is published, and how often: seldom while there is work, always when there is none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from server.engine.gauges import EngineGauges
from server.ipc.engine_info import GAUGE_NAMES, engine_gauges, memory_reading
from server.ipc.gauges import GaugeBlock
from server.memory.accounting.accountant import Accountant
from server.memory.accounting.reading import DeviceReading
from server.memory.kinds import MemoryKind
from server.worker.gauge_publisher import GaugePublisher
from tests.memory.accounting import accounting_sources

MIB = 2**20
PAGE_BYTES, TOKEN_BYTES, NUM_BLOCKS = 64, 4, 10
NOTHING = EngineGauges(**dict.fromkeys(EngineGauges.__annotations__, 0))


class FakeEngine:
    """A core, its device and its clock. Every look at the device costs ``reading_s``."""

    def __init__(self) -> None:
        self.now = 100.0
        self.spent = 0.0
        self.has_work = True
        self.state = NOTHING
        self.foreign = 0
        self.gauges_s = self.reading_s = 0.0
        self.looks = self.readings = 0

    def clock(self) -> float:
        return self.now

    def cost(self) -> float:
        return self.spent

    def gauges(self) -> EngineGauges:
        self.looks += 1
        self.spent += self.gauges_s
        return self.state

    def read(self) -> DeviceReading:
        self.readings += 1
        self.spent += self.reading_s
        total, held = 1000 * MIB, NUM_BLOCKS * PAGE_BYTES
        kinds = {MemoryKind.FREE: total - held - self.foreign}
        return DeviceReading(total=total, resident=100 * MIB, kinds=kinds)

    @property
    def accountant(self) -> Accountant:
        held = {MemoryKind.KV_CACHE: NUM_BLOCKS * PAGE_BYTES}
        cache = {"kv_page_bytes": PAGE_BYTES, "kv_token_bytes": TOKEN_BYTES}
        return Accountant(accounting_sources(self, lambda: held, **cache))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def block() -> Iterator[GaugeBlock]:
    with GaugeBlock.create(GAUGE_NAMES) as block:
        yield block


@pytest.fixture
def publish(engine: FakeEngine, block: GaugeBlock) -> GaugePublisher:
    return GaugePublisher(engine, engine.accountant, block, clock=engine.clock, cost=engine.cost)


def call_for(engine: FakeEngine, publish: GaugePublisher, seconds: float, every: float) -> None:
    for _ in range(round(seconds / every)):
        engine.now += every
        publish()


def test_while_there_is_work_gauges_are_published_every_20_ms(
    engine: FakeEngine, publish: GaugePublisher
) -> None:
    call_for(engine, publish, seconds=1.0, every=0.001)
    assert 45 <= engine.looks <= 51


def test_an_engine_without_work_is_seen_as_it_is_at_once(
    engine: FakeEngine, publish: GaugePublisher, block: GaugeBlock
) -> None:
    engine.state = replace(NOTHING, requests_running=3, steps=1)
    publish()
    engine.now += 0.001  # the last step of the last request
    engine.state, engine.has_work = replace(NOTHING, steps=2), False
    publish()
    seen = engine_gauges(block.read())
    assert (seen["requests_running"], seen["steps"]) == (0, 2)


def test_publishing_takes_a_four_hundredth_of_the_time_however_dear_it_is(
    engine: FakeEngine, publish: GaugePublisher
) -> None:
    engine.gauges_s = 0.001
    call_for(engine, publish, seconds=20.0, every=0.005)
    assert engine.spent == pytest.approx(20.0 / 400, rel=0.05)


def test_readings_take_a_two_hundredth_of_the_time_however_dear_they_are(
    engine: FakeEngine, publish: GaugePublisher
) -> None:
    engine.reading_s = 0.05
    call_for(engine, publish, seconds=100.0, every=0.005)
    assert engine.spent == pytest.approx(100.0 / 200, rel=0.15)


def test_a_cheap_reading_is_taken_four_times_a_second_and_idle_too(
    engine: FakeEngine, publish: GaugePublisher
) -> None:
    engine.has_work = False
    call_for(engine, publish, seconds=10.0, every=0.01)
    assert 38 <= engine.readings <= 41


def test_the_split_of_the_kv_pool_follows_the_blocks_between_two_readings(
    engine: FakeEngine, publish: GaugePublisher, block: GaugeBlock
) -> None:
    publish()
    engine.now += 0.03  # a reading is not due
    engine.state = replace(
        NOTHING,
        blocks_active=2,
        blocks_reserved=1,
        blocks_cached=4,
        kv_tokens_reserved=32,
        kv_tokens_filled=30,
    )
    publish()
    reading = memory_reading(block.read())
    assert reading is not None
    assert engine.readings == 1
    pool = reading.kinds[MemoryKind.KV_CACHE]
    assert pool.parts["active"] == 3 * PAGE_BYTES - 2 * TOKEN_BYTES
    assert pool.parts["cached"] == 4 * PAGE_BYTES
    assert pool.parts["tail_waste"] == 2 * TOKEN_BYTES
    assert pool.parts["free"] == 3 * PAGE_BYTES
    assert pool.now == NUM_BLOCKS * PAGE_BYTES


def test_unaccounted_memory_warns_once_and_once_when_it_is_back(
    engine: FakeEngine, publish: GaugePublisher, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "quire.memory"):
        for engine.foreign in (0, 9 * MIB, 10 * MIB, 0, 0):
            engine.now += 1.0
            publish()
    above, below = (record.getMessage() for record in caplog.records)
    assert above.startswith("unaccounted memory is 9.00 MiB of 100.00 MiB resident: above")
    assert below.endswith("below the bound of 8.00 MiB")

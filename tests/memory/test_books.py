"""The books of a real engine close: idle, under load, and with memory that nobody told them of.

Every engine here is built in a fresh interpreter (books_probe), because its books are those of a
whole process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from server.config.options import DEMO_MODEL_DIR
from server.memory.accounting.accountant import Accountant, KVUse
from server.memory.accounting.cpu import CpuMemory
from server.memory.accounting.process import Snapshot
from server.memory.accounting.reading import flatten
from server.memory.kinds import MemoryKind
from tests.memory.accounting import accounting_sources, figures_of
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_llama

MIB = 2**20
Reading = Mapping[str, int]


def probe(model_dir: Path, tokens: int, dtype: str, requests: int = 48) -> dict[str, Reading]:
    arguments = (model_dir, tokens, dtype, requests)
    return figures_of("tests.memory.books_probe", *arguments, timeout=280)


@pytest.fixture(scope="module")
def demo() -> dict[str, Reading]:
    return probe(DEMO_MODEL_DIR, 200, "float32")


def assert_closes(reading: Reading) -> None:
    assert sum(reading[kind] for kind in MemoryKind) == reading["total"]
    allowed = max(8 * MIB, 0.02 * reading["resident"])
    assert abs(reading["unaccounted"]) <= allowed, reading
    assert min(reading[kind] for kind in MemoryKind if kind is not MemoryKind.UNACCOUNTED) >= 0


def assert_close_to_plan(plan: Reading, reading: Reading) -> None:
    for kind, planned in plan.items():
        measured = reading[f"{kind}.peak" if kind == "activations" else kind]
        assert abs(measured - planned) <= max(8 * MIB, 0.02 * planned), kind


def test_the_books_close_idle_under_load_and_after(demo: dict[str, Reading]) -> None:
    for moment in ("idle", "load", "after"):
        assert_closes(demo[moment])


def test_each_planned_kind_is_what_is_measured(demo: dict[str, Reading]) -> None:
    assert_close_to_plan(demo["plan"], demo["load"])
    for kind in ("weights", "kv_cache", "io"):
        assert demo["idle"][kind] == demo["plan"][kind]


def test_the_cache_is_split_by_what_its_blocks_do(demo: dict[str, Reading]) -> None:
    parts = ("active", "cached", "tail_waste", "free")
    for moment in ("idle", "load", "after"):
        assert sum(demo[moment][f"kv_cache.{part}"] for part in parts) == demo[moment]["kv_cache"]
    assert demo["idle"]["kv_cache.free"] == demo["idle"]["kv_cache"]
    assert demo["load"]["kv_cache.active"] > 0
    assert demo["load"]["kv_cache.tail_waste"] > 0
    assert demo["after"]["kv_cache.active"] == demo["after"]["kv_cache.tail_waste"] == 0
    assert demo["after"]["kv_cache.cached"] > 0


@pytest.mark.parametrize("way", ["mmap", "one malloc", "many mallocs"])
def test_64_mib_behind_the_books_are_unaccounted_until_they_are_freed(
    demo: dict[str, Reading], way: str
) -> None:
    before, held, freed = (demo[f"{way}.{when}"] for when in ("before", "held", "freed"))
    assert held["unaccounted"] - before["unaccounted"] == pytest.approx(64 * MIB, abs=2 * MIB)
    assert freed["unaccounted"] - before["unaccounted"] == pytest.approx(0, abs=2 * MIB)
    assert held["runtime"] - before["runtime"] == pytest.approx(0, abs=MIB)
    for reading in (before, held, freed):
        assert sum(reading[kind] for kind in MemoryKind) == reading["total"]


def snapshot(resident: int, code: int, heap: int, in_use: int, free: int = 500) -> Snapshot:
    return Snapshot(
        total=1000,
        free=free,
        resident=resident,
        code=code,
        anonymous=resident - code,
        other_mapped=0,
        heap_resident=heap,
        heap_in_use=in_use,
        took_s=0.0,
    )


def accountant(base: Snapshot, now: Snapshot, held: int) -> Accountant:
    cache = {"kv_use": lambda: KVUse(2, 1, 8, 5), "kv_page_bytes": 4}
    books = accounting_sources(
        CpuMemory(base, lambda: now),
        lambda: {MemoryKind.WEIGHTS: held, MemoryKind.KV_CACHE: 40},
        peak_activation_bytes=lambda: 7,
        **cache,
    )
    return Accountant(books)


def test_unaccounted_is_what_nothing_else_explains() -> None:
    base = snapshot(resident=100, code=60, heap=20, in_use=15)  # 35 written, 5 slack
    now = snapshot(resident=270, code=65, heap=50, in_use=30)  # 20 slack
    reading = flatten(accountant(base, now, held=80).read())
    assert reading["runtime"] == 65 + 35
    assert reading["allocator_slack"] == 20
    assert reading["unaccounted"] == 270 - (80 + 40 + 100 + 20)
    assert reading["other_processes"] == 1000 - 500 - (270 - 65)  # code can be taken back
    assert sum(reading[kind] for kind in MemoryKind) == 1000
    assert reading["activations.peak"] == 7
    parts = [reading[f"kv_cache.{part}"] for part in ("active", "cached", "tail_waste", "free")]
    assert parts == [2 * 4 - 3, 4, 3, 28]


def test_a_peak_stays_when_less_is_held_again() -> None:
    now, held, activations = [snapshot(270, 65, 50, 30)], [80], [7]
    base = snapshot(resident=100, code=60, heap=20, in_use=15)
    sources = accounting_sources(
        CpuMemory(base, lambda: now[0]),
        lambda: {MemoryKind.WEIGHTS: held[0]},
        peak_activation_bytes=lambda: activations[0],
    )
    books = Accountant(sources)
    high = flatten(books.read())
    now[0], held[0], activations[0] = snapshot(150, 60, 20, 20), 30, 2
    low = flatten(books.read())
    assert (low["weights"], low["activations"]) == (30, 0)
    for kind in (*MemoryKind,):
        assert low[f"{kind}.peak"] == max(high[f"{kind}.peak"], low[kind]), kind
    assert (low["weights.peak"], low["activations.peak"]) == (80, 7)
    assert low["allocator_slack.peak"] == high["allocator_slack"] == 20
    assert low["allocator_slack"] == 0


def test_unaccounted_keeps_its_sign() -> None:
    base = snapshot(resident=100, code=60, heap=20, in_use=20)
    now = snapshot(resident=190, code=60, heap=20, in_use=20)
    assert flatten(accountant(base, now, held=80).read())["unaccounted"] == -30


def test_free_never_promises_more_than_there_is() -> None:
    now = snapshot(resident=700, code=60, heap=20, in_use=20, free=900)
    reading = flatten(accountant(snapshot(100, 60, 20, 20), now, held=80).read())
    assert (reading["free"], reading["other_processes"]) == (300, 0)
    assert sum(reading[kind] for kind in MemoryKind) == 1000


HALF_BILLION = tiny_llama(
    num_query_heads=14,
    num_kv_heads=2,
    head_dim=64,
    hidden_size=896,
    num_layers=24,
    intermediate_size=4864,
    vocab_size=151_936,
    max_positions=2048,
    tied=True,
)


@pytest.mark.slow
def test_the_books_of_half_a_billion_parameters_close_too(tmp_path: Path) -> None:
    write_checkpoint(HALF_BILLION, tmp_path, seed=1, format="bf16", sharp=False)
    found = probe(tmp_path, 64, "float32", requests=8)
    for moment in ("idle", "load", "after"):
        assert_closes(found[moment])
    assert_close_to_plan(found["plan"], found["load"])


@pytest.mark.slow
def test_the_books_of_16_bit_weights_close_under_load() -> None:
    found = probe(DEMO_MODEL_DIR, 200, "bfloat16")
    for moment in ("idle", "load", "after"):
        assert_closes(found[moment])

"""Lets an engine whose model has windows serve several hundred requests over a small pool, and
prints its books and counts as one JSON object.

Run as ``python -m tests.memory.window_books_probe MODEL_DIR KV_BYTES REQUESTS`` in a fresh
interpreter: the books are those of a whole process. The requests share a few beginnings, longer
than the window, and come in two waves, so that the second finds what the first left in the prefix
cache; their answers are long beside the pool, so that some are preempted.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from typing import Any

from server.config.server_config import resolve
from server.engine.request import EngineRequest, SamplingParams
from server.memory.accounting.process import limit_malloc_arenas
from server.memory.accounting.reading import flatten
from server.startup.model_info import engine_settings, read_model
from server.worker.build import BuiltEngine, build_engine

PREFIXES, PREFIX_TOKENS = 6, 160
SIZES = {
    "max-num-seqs": "16",
    "max-num-batched-tokens": "256",
    "max-model-len": "512",
    "block-size": "16",
}


def main() -> None:
    limit_malloc_arenas()
    model_dir, kv_bytes, requests = sys.argv[1], sys.argv[2], int(sys.argv[3])
    own = {"model-dir": model_dir, "kv-cache-memory": kv_bytes, "threads": "1", "dtype": "float32"}
    config = resolve({**own, **SIZES}, {})
    model = read_model(config)
    engine = build_engine(engine_settings(config, model), lambda text: None)
    found: dict[str, Any] = {"plan": model.plan.kinds, "idle": moment(engine)}
    numbers = random.Random(7)
    beginnings = [words(numbers, PREFIX_TOKENS) for _ in range(PREFIXES)]
    for wave in (1, 2):
        asked = [ask(numbers, beginnings, f"{wave}.{i}") for i in range(requests // 2)]
        found[f"wave {wave}"] = serve(engine, asked)
        found[f"after {wave}"] = moment(engine)
    print(json.dumps(found))


def words(numbers: random.Random, count: int) -> tuple[int, ...]:
    return tuple(numbers.randrange(3, 500) for _ in range(count))


def ask(numbers: random.Random, beginnings: list[tuple[int, ...]], name: str) -> EngineRequest:
    prompt = numbers.choice(beginnings) + words(numbers, numbers.randrange(1, 60))
    length = numbers.randrange(40, 140)
    sampling = SamplingParams(seed=1, max_tokens=length, ignore_eos=True, temperature=1.0)
    return EngineRequest(name, prompt, sampling)


def moment(engine: BuiltEngine) -> dict[str, Any]:
    """The books and the engine's counts, as they are now."""
    return {"books": flatten(engine.accountant.read()), "counts": asdict(engine.core.gauges())}


def serve(engine: BuiltEngine, asked: list[EngineRequest]) -> dict[str, Any]:
    """What became of the requests; every 20 steps the books, of which those with the most
    unaccounted are kept, and in each step whether the pool's blocks add up."""
    engine.core.submit(asked)
    hits = steps = finished = 0
    unequal: list[dict[str, int]] = []
    readings: list[dict[str, int]] = []
    while engine.core.has_work:
        frame = engine.core.step()
        steps += 1
        if frame is not None:
            hits += 0 if frame.stats is None else frame.stats.prefix_hit_tokens
            finished += sum(one.finish_reason is not None for one in frame.choices)
        counts = engine.core.gauges()
        parts = ("active", "reserved", "cached", "free")
        if counts.blocks_total != sum(getattr(counts, f"blocks_{part}") for part in parts):
            unequal.append(asdict(counts))
        if steps % 20 == 0:
            readings.append(flatten(engine.accountant.read()))
    worst = max(readings, key=lambda reading: abs(reading["unaccounted"]))
    return {"finished": finished, "hits": hits, "unequal": unequal, "load": worst}


if __name__ == "__main__":
    main()

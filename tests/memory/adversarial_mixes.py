"""Mixes of requests that are made to exceed a memory plan, and an engine that serves them.

Run as ``python -m tests.memory.adversarial_mixes MODEL_DIR KV_BYTES FIRST COUNT BACKEND``: builds
an engine as its process does, serves the mixes with these seeds through the in-process client, and
prints one JSON object: what became of the requests, what was planned, and the most that was
measured.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.client.in_process import OfflineEngineClient
from server.config.server_config import resolve
from server.engine.events import PromptOutput
from server.engine.request import EngineRequest, SamplingParams
from server.errors import QuireError
from server.execution.live_bytes import LiveBytes, PeakMeter
from server.memory.accounting.process import limit_malloc_arenas
from server.memory.accounting.reading import flatten
from server.output.processor import OutputOptions, OutputProcessor
from server.startup.model_info import engine_settings, read_model
from server.text.tokenizer import Tokenizer
from server.worker.build import BuiltEngine, build_engine
from tests.memory.resident_peak import exact_malloc, resident_peak
from weights.synthetic.tiny_specs import tiny_llama

VOCAB = 32_000
MAX_SEQS, MAX_TOKENS, MAX_LEN = 8, 256, 384
# Little to compute and much to hold: an inner layer as wide as a large model's, and its vocabulary.
MODEL = tiny_llama(
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=32,
    hidden_size=64,
    num_layers=1,
    intermediate_size=25_000,
    vocab_size=VOCAB,
    max_positions=MAX_LEN,
)
LIMITS = {
    "max-num-seqs": str(MAX_SEQS),
    "max-num-batched-tokens": str(MAX_TOKENS),
    "max-model-len": str(MAX_LEN),
}
LEAST_BLOCKS = -(-MAX_LEN // 16)
BLOCK_BYTES = 16 * 2 * 2 * 32 * 4


@dataclass(frozen=True)
class Ask:
    """A request, and what its client does: leaves after so many events, or never."""

    request: EngineRequest
    stops: tuple[str, ...] = ()
    leaves_after: int | None = None


@dataclass
class Outcomes:
    counts: Counter[str] = field(default_factory=Counter)
    refusals: set[str] = field(default_factory=set)  # without their numbers' values
    errors: list[str] = field(default_factory=list)


def mix(seed: int) -> list[Ask]:
    """Some requests that come together, each as demanding as chance makes it."""
    rng = random.Random(seed)
    stem = tuple(rng.randrange(5, VOCAB) for _ in range(MAX_LEN))
    return [_ask(rng, f"{seed}.{i}", stem) for i in range(rng.randint(1, 7))]


def _ask(rng: random.Random, name: str, stem: tuple[int, ...]) -> Ask:
    length = rng.choice((1, 2, 15, 16, 17, 33, 100, 255, 256, 300, MAX_LEN - 1, MAX_LEN))
    own = tuple(rng.randrange(5, VOCAB) for _ in range(length))
    shared = rng.choice((0, 0, 16, 40, 200))
    prompt = (stem[:shared] + own)[:length]
    # Once in a while one token more than the context holds.
    max_tokens = min(
        rng.choice((0, 1, 2, 5, 12, 24)), max(0, MAX_LEN - length) + (rng.random() < 0.1)
    )
    tops = (None, None, 0, 1, 5, 20, 20, 21)
    temperature = rng.choice((0.0, 0.7, 1.0, 2.0, 1000.0))
    sampling = SamplingParams(
        seed=rng.randrange(1 << 40),
        max_tokens=max_tokens,
        min_tokens=rng.choice((0, 0, max_tokens // 2, max_tokens)),
        temperature=temperature,
        top_k=rng.choice((-1, -1, 1, 50, 2000)),
        top_p=rng.choice((1.0, 0.9, 0.999)),
        min_p=rng.choice((0.0, 0.0, 1e-6, 0.1)),
        presence_penalty=rng.choice((0.0, 0.5)),
        frequency_penalty=rng.choice((0.0, 0.5, -0.5)),
        repetition_penalty=rng.choice((1.0, 1.0, 1.2)),
        logit_bias=tuple((i, 1.0) for i in rng.sample(range(VOCAB), rng.choice((0, 0, 3, 1000)))),
        stop_token_ids=tuple(rng.sample(range(VOCAB), rng.choice((0, 0, 64)))),
        ignore_eos=rng.random() < 0.5,
        logprobs=rng.choice(tops),
        prompt_logprobs=rng.choice(tops),
    )
    request = EngineRequest(
        name,
        prompt,
        sampling,
        n=rng.choice((1, 1, 1, 2, 4, MAX_SEQS, MAX_SEQS + 1)),
        priority=rng.choice((0, 0, -1, 3)),
        cache_salt=rng.choice(("", "", "salt")),
    )
    return Ask(
        request,
        stops=rng.choice(((), (), ("a",), ("e", " the"))),
        leaves_after=rng.choice((None, None, None, 0, 1, 4)),
    )


async def serve(
    client: OfflineEngineClient, tokenizer: Tokenizer, ask: Ask, found: Outcomes
) -> None:
    """One client: submits, reads, tells of stop strings, leaves early."""
    try:
        await client.submit([ask.request])
    except QuireError as error:
        found.counts[f"refused {error.code.name}"] += 1
        found.refusals.add(error.message)
        return
    processor = OutputProcessor(tokenizer, ask.request, OutputOptions(ask.stops))
    seen = 0
    try:
        if ask.leaves_after != 0:
            async for event in client.events(ask.request.request_id):
                processor.feed(event)
                for stopped in processor.take_stopped():
                    client.finish(ask.request.request_id, stopped.choice, stopped.num_tokens)
                seen += not isinstance(event, PromptOutput)
                if seen == ask.leaves_after or processor.finished:
                    break
    except QuireError as error:
        found.counts[f"error {error.code.name}"] += 1
        found.errors.append(error.message)
    else:
        found.counts["finished" if processor.finished else "left"] += 1
    finally:
        client.abort([ask.request.request_id])


async def serve_all(engine: BuiltEngine, tokenizer: Tokenizer, seeds: range) -> Outcomes:
    """Mix after mix, the next while the last one's leavers are still being forgotten."""
    found = Outcomes()
    async with OfflineEngineClient(engine.core) as client:
        for seed in seeds:
            await asyncio.gather(*(serve(client, tokenizer, ask, found) for ask in mix(seed)))
        while engine.core.has_work:
            await asyncio.sleep(0.01)
        await client.call(engine.core.check)
    return found


def watch_every_step() -> None:
    """From now on every step counts towards the peak, and what was before does not."""
    begun: list[PeakMeter] = []

    @contextmanager
    def watch(meter: PeakMeter, tokens: int, logit_rows: int, carried: int = 0) -> Iterator[None]:
        if meter not in begun:
            begun.append(meter)
            meter.peak_bytes = 0
        with LiveBytes() as live:
            yield
        meter.peak_bytes = max(meter.peak_bytes, carried + live.peak_bytes)

    PeakMeter.watch = watch  # type: ignore[method-assign]


def main() -> None:
    folder, kv_bytes, first, count = sys.argv[1], *(int(text) for text in sys.argv[2:5])
    backend = sys.argv[5]
    limit_malloc_arenas()
    exact_malloc()
    options: dict[str, Any] = {"model-dir": folder, "threads": "1", "dtype": "float32", **LIMITS}
    flags = {**options, "kv-cache-memory": str(kv_bytes), "backend": backend}
    config = resolve(flags, {"QUIRE_DEBUG_CHECK_INVARIANTS": "on"})
    model = read_model(config)
    engine = build_engine(engine_settings(config, model), lambda text: None)
    watch_every_step()
    tokenizer = Tokenizer.from_folder(Path(folder), vocab_size=VOCAB)
    told: list[Outcomes] = []
    seeds = range(first, first + count)
    peak = resident_peak(lambda: told.append(asyncio.run(serve_all(engine, tokenizer, seeds))))
    found, gauges = told[0], engine.core.gauges()
    answer = {
        "counts": found.counts,
        "refusals": sorted(found.refusals),
        "errors": found.errors,
        "plan": model.plan.kinds,
        "blocks": model.plan.kv.num_blocks,
        "reading": flatten(engine.accountant.read()),
        "resident_peak": peak,
        "failed_steps": gauges.failed_steps,
        "preemptions": gauges.preemptions,
        "steps": gauges.steps,
        "held_blocks": gauges.blocks_active + gauges.blocks_reserved,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

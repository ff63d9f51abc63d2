"""Builds one engine after the other, each in a process of its own, and tells what it measured.

Run as ``python -m tests.memory.engine_fleet`` with cases as JSON lines on standard input: a model
folder and options of the server. A line of JSON comes back for each. What takes seconds (importing
torch) is done once; each engine is built in a fork, which has threads, heap and books of its own.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from server.config.server_config import resolve
from server.engine.request import EngineRequest, SamplingParams
from server.engine.step_plan import StepPlan
from server.execution.build import build_runner
from server.execution.warm_up import largest_plan
from server.memory.accounting.process import limit_malloc_arenas
from server.memory.accounting.reading import flatten
from server.startup.model_info import ModelInfo, engine_settings, read_model
from server.worker.build import BuiltEngine, build_engine
from tests.memory.resident_peak import exact_malloc, resident_peak


def main() -> None:
    limit_malloc_arenas()
    for line in sys.stdin:
        options = json.loads(line)
        books = in_a_fork(partial(measure, options))
        print(json.dumps(books | in_a_fork(partial(largest_step, options))), flush=True)


def in_a_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with os.fdopen(writer, "w") as out:
                json.dump(work(), out)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"an engine ended with {status}")
    found: dict[str, Any] = json.loads(text)
    return found


def measure(options: Mapping[str, Any]) -> dict[str, Any]:
    """The books of a whole engine: planned, idle, under load and after it."""
    config = resolve({"threads": "1", **options}, {})
    model = read_model(config)
    engine = build_engine(engine_settings(config, model), lambda text: None)
    idle = flatten(engine.accountant.read())
    load = _under_load(engine, model)
    return {
        "plan": model.plan.kinds,
        "planned_weights": model.plan.layout.weights,
        "weights": engine.facts.weights,
        "idle": idle,
        "load": load,
        "after": flatten(engine.accountant.read()),
    }


def largest_step(options: Mapping[str, Any]) -> dict[str, Any]:
    """Resident bytes that the largest step takes beside everything that stays: what tensors and
    what operations hold inside themselves."""
    exact_malloc()
    model = read_model(resolve({"threads": "1", **options}, {}))
    torch.set_num_threads(1)
    runner = build_runner(model.folder, model.plan.config, warm_up=False).runner
    runner.peak.watch = no_watch  # type: ignore[method-assign]
    plan = largest_plan(model.plan.config)
    release = StepPlan(plan.step_id, released=tuple(row.row for row in plan.rows))

    def work() -> None:
        handle = runner.forward_layers(plan, runner.layers_to_measure)
        runner.sample(handle, None)
        runner.forward(release)

    work()  # libraries take what they keep
    return {"step": resident_peak(work)}


@contextmanager
def no_watch(tokens: int, logit_rows: int, carried: int = 0) -> Iterator[None]:
    yield


def _under_load(engine: BuiltEngine, model: ModelInfo) -> dict[str, int]:
    """Full batches of scored prompts, then decodes. The reading with most unaccounted is kept."""
    sizes = model.plan.config.scheduler
    length = max(2, min(sizes.max_model_len - 8, sizes.max_num_batched_tokens // 2))
    vocab = model.spec.vocab_size
    for i in range(sizes.max_num_seqs + 2):
        sampling = SamplingParams(
            seed=i,
            max_tokens=6,
            ignore_eos=True,
            top_p=0.9,
            frequency_penalty=0.2,
            logprobs=sizes.max_logprobs,
            prompt_logprobs=sizes.max_logprobs if i < 3 else None,
        )
        prompt = tuple((7 * t + i) % (vocab - 10) + 5 for t in range(length if i < 4 else 8))
        engine.core.submit([EngineRequest(f"r{i}", prompt, sampling)])
    readings = []
    while engine.core.has_work:
        engine.core.step()
        if engine.core.has_work:
            readings.append(flatten(engine.accountant.read()))
    return max(readings, key=lambda reading: abs(reading["unaccounted"]))


if __name__ == "__main__":
    main()

"""Prompts that arrive together: ``python -m server.bench together [MODEL_DIR] ...``, see --help.

    all       seconds of computing until the last prompt has its first token
    median    seconds until half of them have theirs, and their share of all: goal <= 60 %
    pause     longest time between two tokens of an answer meanwhile: goal <= 0.5 s

The engine's loop in this process, without HTTP, with the options that a server would start with.
Figures are medians over the rounds with [min..max].
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.bench.engine import DEMO, Spread
from server.bench.http import model_folder
from server.bench.shapes import gpu_shapes, shapes
from server.config.server_config import resolve
from server.engine.core import EngineCore
from server.engine.request import EngineRequest, SamplingParams
from server.startup.model_info import engine_settings, read_model
from server.worker.build import build_engine


@dataclass(frozen=True, slots=True)
class Together:
    """Seconds of computing from the arrival: until each prompt's first token, in their order, and
    the longest between two tokens of one answer."""

    first_tokens: tuple[float, ...]
    pause: float

    @property
    def all(self) -> float:
        return self.first_tokens[-1]

    @property
    def median(self) -> float:
        return statistics.median(self.first_tokens)


def answer_together(core: EngineCore, prompts: Sequence[tuple[int, ...]]) -> Together:
    """Computes ``prompts`` until each has its first token; those that have go on meanwhile.

    Raises SystemExit where the engine refuses one.
    """
    sampling = SamplingParams(seed=0, temperature=0.0, max_tokens=4 * len(prompts), ignore_eos=True)
    requests = [EngineRequest(f"{index}", tokens, sampling) for index, tokens in enumerate(prompts)]
    began = time.perf_counter()
    core.submit(requests)
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    pause = 0.0
    while len(first) < len(prompts):
        frame = core.step()
        now = time.perf_counter() - began
        if frame is None:
            continue
        if frame.refused:
            raise SystemExit(f"the engine refused a prompt: {frame.refused[0].message}")
        for output in frame.choices:
            if output.token_ids:
                name = output.request_id
                first.setdefault(name, now)
                pause = max(pause, now - last.get(name, now))
                last[name] = now
    core.abort([request.request_id for request in requests])
    while core.has_work:
        core.step()
    return Together(tuple(sorted(first.values())), pause)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    with model_folder(options.model_dir, options.synthetic) as folder:
        flags = {"model-dir": str(folder), "device": "cpu", "prefix-caching": "off"}
        if options.backend:
            flags["backend"] = options.backend
        if options.step_tokens:
            flags["max-num-batched-tokens"] = options.step_tokens
        config = resolve(flags, {})
        model = read_model(config)
        settings = engine_settings(config, model)
        core = build_engine(settings, lambda text: None).core
    draw = random.Random(1)
    rounds = []
    for _ in range(options.rounds):
        prompts = [
            tuple(draw.randrange(model.spec.vocab_size) for _ in range(options.prompt_tokens))
            for _ in range(options.prompts)
        ]
        rounds.append(answer_together(core, prompts))
    how = settings.config
    print(
        f"{options.prompts} prompts of {options.prompt_tokens} tokens together, "
        f"{how.model.backend}, {how.model.format}, {how.model.num_threads} threads, "
        f"{how.scheduler.max_num_batched_tokens} tokens a step"
    )
    print(f"all     {Spread.of([one.all for one in rounds]).show(2)} s")
    share = Spread.of([100 * one.median / one.all for one in rounds])
    print(
        f"median  {Spread.of([one.median for one in rounds]).show(2)} s, {share.show(0)} % of all"
    )
    print(f"pause   {Spread.of([one.pause for one in rounds]).show(2)} s")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server.bench together", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model_dir", nargs="?", type=Path, default=DEMO, help="checkpoint (default: the demo)")
    add("--synthetic", choices=sorted({**shapes(), **gpu_shapes()}), help="random weights instead")
    add("--backend", help="default: the server's")
    add("--step-tokens", metavar="N", help="--max-num-batched-tokens; default: the server's")
    add("--prompts", type=int, default=16, help="default %(default)s")
    add("--prompt-tokens", type=int, default=128, help="of each; default %(default)s")
    add("--rounds", type=int, default=3, help="default %(default)s")
    return parser.parse_args(arguments)

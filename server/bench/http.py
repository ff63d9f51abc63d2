"""What serving over HTTP costs: ``python -m server.bench http [MODEL_DIR] ...``, see --help.

For each concurrency, a closed loop of so many users who ask again as soon as they are answered

    offline   output tokens/s of the engine's loop in a process of its own, without HTTP
    HTTP      the same lengths and numbers through a real server, driven by the load test on the
              same machine (``python -m loadtest``)
    kept      HTTP / offline: goal >= 95 % where the client has cores of its own

Rounds take turns between the two, so that a machine that slows down slows both; the figures are
medians over the rounds with [min..max]. While the load runs, /metrics and /memory are read: their
answers are kept in the file of JSON with everything else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from server.bench.engine import DEMO, Spread
from server.bench.server import HOST, ROOT, get, started_server
from server.bench.shapes import gpu_shapes, shapes
from server.config.server_config import resolve
from server.engine.core import EngineCore
from server.engine.request import EngineRequest, SamplingParams
from server.memory.backends.registry import AUTO, devices
from server.memory.backends.torch_cpu import TORCH
from server.memory.backends.triton_cuda import TRITON
from server.startup.model_info import engine_settings, read_model
from server.worker.build import build_engine
from weights.synthetic.checkpoint import write_checkpoint, write_tokenizer

WARM_UP_SHARE = 0.25  # of a loop's seconds, before its tokens are counted


@dataclass(frozen=True, slots=True)
class Options:
    model_dir: Path
    synthetic: str | None
    device: str
    concurrencies: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    seconds: float
    rounds: int
    results: Path | None

    @property
    def name(self) -> str:
        return self.synthetic or self.model_dir.name

    def serving(self, folder: Path) -> dict[str, str]:
        """Options of the engine, the same with HTTP and without."""
        return {
            "model-dir": str(folder),
            "device": self.device,
            "max-num-seqs": str(max(self.concurrencies)),
        }


@dataclass(frozen=True, slots=True)
class Over:
    """One closed loop over HTTP. Latencies in seconds, of requests; ``complaint`` by the client."""

    output_tokens_per_second: float
    ttft: Mapping[str, float]
    tpot: Mapping[str, float]
    complaint: str | None
    memory: Mapping[str, Any]
    metrics: str


@dataclass(frozen=True, slots=True)
class Row:
    concurrency: int
    offline: Spread
    http: Spread
    kept: Spread
    runs: tuple[Over, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    print(
        f"{options.name}: prompts of {options.prompt_tokens} tokens, "
        f"{options.output_tokens} generated, {len(os.sched_getaffinity(0))} cores"
    )
    with model_folder(options.model_dir, options.synthetic) as folder:
        rounds = [_round(folder, options) for _ in range(options.rounds)]
    rows = [_row(size, rounds) for size in options.concurrencies]
    print(f"{'users':>6}  {'offline tokens/s':>28}  {'HTTP tokens/s':>28}  {'kept':>22}")
    for row in rows:
        print(
            f"{row.concurrency:>6}  {row.offline.show():>28}  {row.http.show():>28}  "
            f"{row.kept.median:>7.1%} [{row.kept.min:.1%}..{row.kept.max:.1%}]"
        )
        for complaint in dict.fromkeys(run.complaint for run in row.runs if run.complaint):
            print(f"        {complaint}")
    report = _report(options, rows)
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
        path = options.results / f"http-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))
    return 0


# -- without HTTP ----------------------------------------------------------------------------


def offline_rates(serving: dict[str, str], options: Options) -> dict[int, float]:
    """Output tokens a second by concurrency. Runs in a process of its own, which gives everything
    back when it ends."""
    config = resolve(serving, {})
    model = read_model(config)
    core = build_engine(engine_settings(config, model), lambda text: None).core
    draw = random.Random(1)
    return {
        size: _closed_loop(core, size, model.spec.vocab_size, options, draw)
        for size in options.concurrencies
    }


def _closed_loop(
    core: EngineCore, size: int, vocab_size: int, options: Options, draw: random.Random
) -> float:
    """Keeps ``size`` requests under way for the options' seconds; then ends them."""
    sampling = SamplingParams(
        seed=0, temperature=0.0, max_tokens=options.output_tokens, ignore_eos=True
    )
    submitted: dict[str, None] = {}

    def submit(count: int) -> None:
        for _ in range(count):
            prompt = tuple(draw.randrange(vocab_size) for _ in range(options.prompt_tokens))
            name = f"{size}-{len(submitted)}"
            submitted[name] = None
            core.submit([EngineRequest(name, prompt, sampling)])

    submit(size)
    began = time.perf_counter()
    counted_from, tokens = began + WARM_UP_SHARE * options.seconds, 0
    now = began
    while now < began + options.seconds:
        frame = core.step()
        now = time.perf_counter()
        if frame is None:
            continue
        if frame.refused:
            raise SystemExit(f"the engine refused a request: {frame.refused[0].message}")
        if now >= counted_from:
            tokens += sum(len(choice.token_ids) for choice in frame.choices)
        submit(sum(choice.finish_reason is not None for choice in frame.choices))
    core.abort(submitted)
    while core.has_work:
        core.step()
    return tokens / (now - counted_from)


# -- over HTTP -------------------------------------------------------------------------------


def _over_http(port: int, size: int, options: Options, folder: Path) -> Over:
    scenario, result = folder / f"scenario-{size}.toml", folder / f"result-{size}.json"
    scenario.write_text(_scenario(size, options), encoding="utf-8")
    command = [sys.executable, "-m", "loadtest", "run", str(scenario), "--quiet"]
    command += ["--base-url", f"http://{HOST}:{port}", "--out", str(result)]
    seen: dict[str, bytes] = {}

    def look() -> None:
        for path in ("/metrics", "/memory"):
            seen[path] = get(port, path)[1]

    midway = threading.Timer(0.6 * options.seconds, look)
    midway.start()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    midway.join()
    if not result.exists():
        raise SystemExit(f"the load test failed: {done.stderr.strip() or done.stdout.strip()}")
    found = json.loads(result.read_text(encoding="utf-8"))
    if not found["outcomes"].get("ok"):
        raise SystemExit(f"the load test got no complete answer: {'; '.join(found['complaints'])}")
    return Over(
        output_tokens_per_second=found["rates"]["output_tokens"],
        ttft=_percentiles(found, "ttft"),
        tpot=_percentiles(found, "tpot"),
        complaint=found["client"]["complaint"],
        memory=json.loads(seen["/memory"]),
        metrics=seen["/metrics"].decode(),
    )


def _scenario(size: int, options: Options) -> str:
    return (
        f'name = "closed loop of {size}"\n'
        f'[arrivals]\nkind = "closed"\nconcurrency = {size}\n'
        f"[run]\nseconds = {options.seconds}\n"
        f"[[requests]]\nprompt_tokens = {options.prompt_tokens}\n"
        f"output_tokens = {options.output_tokens}\n"
        "[fields]\ntemperature = 0.0\n"
    )


def _percentiles(found: Mapping[str, Any], measure: str) -> dict[str, float]:
    values = found["measures"].get(measure, {}).get("percentiles", {})
    return {name: estimate["value"] for name, estimate in values.items()}


# -- both ------------------------------------------------------------------------------------


def _round(folder: Path, options: Options) -> dict[int, tuple[float, Over]]:
    """(offline rate, loop over HTTP) by concurrency: one engine at a time holds the device."""
    serving = options.serving(folder)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        offline = process.submit(offline_rates, serving, options).result()
    arguments = [str(folder), *(f"--{k}={v}" for k, v in serving.items() if k != "model-dir")]
    with started_server(arguments) as port, tempfile.TemporaryDirectory() as scratch:
        return {
            size: (offline[size], _over_http(port, size, options, Path(scratch)))
            for size in options.concurrencies
        }


def _row(size: int, rounds: Sequence[Mapping[int, tuple[float, Over]]]) -> Row:
    pairs = [one[size] for one in rounds]
    return Row(
        concurrency=size,
        offline=Spread.of([offline for offline, _ in pairs]),
        http=Spread.of([over.output_tokens_per_second for _, over in pairs]),
        kept=Spread.of([over.output_tokens_per_second / offline for offline, over in pairs]),
        runs=tuple(over for _, over in pairs),
    )


def _report(options: Options, rows: Sequence[Row]) -> dict[str, object]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "device": gpu if gpu and options.device in (AUTO, TRITON.device) else TORCH.device,
        "cores": len(os.sched_getaffinity(0)),
        "model": options.name,
        "prompt_tokens": options.prompt_tokens,
        "output_tokens": options.output_tokens,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "rows": [asdict(row) for row in rows],
    }


@contextmanager
def model_folder(model_dir: Path, synthetic: str | None) -> Iterator[Path]:
    """The checkpoint's folder; of a synthetic one for as long as it is needed."""
    if synthetic is None:
        yield model_dir
        return
    spec = {**shapes(), **gpu_shapes()}[synthetic]
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as name:
        folder = Path(name)
        write_checkpoint(spec, folder, seed=0, format=spec.parameter_dtype, sharp=False)
        write_tokenizer(folder, spec.vocab_size)
        yield folder


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m server.bench http", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model_dir", nargs="?", type=Path, default=DEMO, help="checkpoint (default: the demo)")
    add("--synthetic", choices=sorted({**shapes(), **gpu_shapes()}), help="random weights instead")
    add("--device", default=AUTO, choices=(AUTO, *devices()), help="default %(default)s")
    add("--concurrencies", default="1,8,32", help="default %(default)s; for a GPU 1,64,256")
    add("--prompt-tokens", type=int, default=128, help="per request; default %(default)s")
    add("--output-tokens", type=int, default=64, help="per request; default %(default)s")
    add("--seconds", type=float, default=15.0, help="of each loop; default %(default)s")
    add("--rounds", type=int, default=3, help="default %(default)s")
    add("--results", type=Path, metavar="FOLDER", help="keep a file of JSON there")
    given = vars(parser.parse_args(arguments))
    try:
        sizes = tuple(int(text) for text in given["concurrencies"].split(","))
    except ValueError:
        parser.error(f"--concurrencies {given['concurrencies']!r}: give numbers, as in 1,8,32")
    if min(*sizes, given["prompt_tokens"], given["rounds"]) < 1 or given["output_tokens"] < 2:
        parser.error("concurrencies, prompt tokens and rounds start at 1, output tokens at 2")
    if given["seconds"] < 1:
        parser.error("--seconds must be at least 1")
    return Options(**(given | {"concurrencies": sizes}))

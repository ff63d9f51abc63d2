"""What the memory accountant costs: ``python -m server.bench books [MODEL_DIR] ...``, see --help.

Three figures, each a median with [min..max].

    throughput   tokens/s of the engine's loop with the accountant and without, in this process. The
                 two take turns within a round, and which goes first changes from round to round, so
                 that a machine that slows down slows both. The cost is the median over the rounds
                 of 1 - with / without.
    share        of the loop's own processor time, what goes into publishing: gauges and readings.
                 It is the one to look at where other work disturbs the first.
    /metrics     milliseconds of an answer from a real server, idle and with as many requests under
                 way as it computes at once and as many again waiting; and /memory likewise.

The last line is JSON. Figures of a machine that does other work at the same time say little: the
spread shows it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

from server.bench.engine import DEMO, Spread
from server.bench.server import ANSWER_S, HOST, get, started_server
from server.config.server_config import ServerConfig, resolve
from server.engine.request import EngineRequest, SamplingParams
from server.ipc.engine_info import GAUGE_NAMES
from server.ipc.gauges import GaugeBlock
from server.startup.model_info import engine_settings, read_model
from server.worker.build import BuiltEngine, build_engine
from server.worker.gauge_publisher import GaugePublisher

PATHS = ("/metrics", "/memory")
Publish = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Options:
    model_dir: str
    rounds: int
    batch: int
    prompt_tokens: int
    output_tokens: int
    scrapes: int

    @property
    def config(self) -> ServerConfig:
        return resolve({"model-dir": self.model_dir, "device": "cpu"}, {})


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens per second, and the share of them that the accountant costs (signed)."""

    with_books: Spread
    without: Spread
    cost: Spread
    processor_share: Spread


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    throughput = measure_throughput(options)
    print(f"tokens/s with the accountant {throughput.with_books.show()}")
    print(f"tokens/s without             {throughput.without.show()}")
    print(f"cost  {_percent(throughput.cost)}")
    print(f"share {_percent(throughput.processor_share)}", flush=True)
    scrapes = measure_scrapes(options)
    for name, spread in scrapes.items():
        print(f"{name:<20} {spread.show(2)} ms")
    report = {
        "rounds": options.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "throughput": asdict(throughput),
        "milliseconds": {name: asdict(spread) for name, spread in scrapes.items()},
    }
    print(json.dumps(report))
    return 0


def _percent(spread: Spread) -> str:
    return f"{spread.median:.2%} [{spread.min:.2%}..{spread.max:.2%}]"


class Stopwatch:
    """A clock that runs only while asked to: a publisher keeps its pace over its own rounds, and
    is not overdue because the rounds without it took time."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        return self._seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._seconds, self._since = self(), None


class Timed:
    """Publishes, and adds up the processor time of the calling thread that it takes."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self.seconds = 0.0

    def __call__(self) -> None:
        started = time.thread_time()
        self._publish()
        self.seconds += time.thread_time() - started


def measure_throughput(options: Options) -> Throughput:
    """The engine of one server in this process, with and without its memory account being read."""
    config = options.config
    engine = build_engine(engine_settings(config, read_model(config)), lambda text: None)
    logging.getLogger("quire.memory").setLevel(logging.ERROR)  # this is not an engine process
    clock = Stopwatch()
    with GaugeBlock.create(GAUGE_NAMES) as block:
        publish = GaugePublisher(engine.core, engine.accountant, block, clock=clock)
        ways = {True: Timed(publish), False: Timed(lambda: None)}
        rates: dict[bool, list[float]] = {True: [], False: []}
        shares: list[float] = []
        for turn in range(-1, options.rounds):  # round -1 warms up and is not counted
            for way in (True, False) if turn % 2 else (False, True):
                ways[way].seconds, started = 0.0, time.thread_time()
                with clock.running() if way else nullcontext():
                    rate = run_round(engine, ways[way], options, name=f"{turn}-{way}")
                if turn >= 0:
                    rates[way].append(rate)
                if turn >= 0 and way:
                    shares.append(ways[way].seconds / (time.thread_time() - started))
    cost = [1 - one / other for one, other in zip(rates[True], rates[False], strict=True)]
    return Throughput(
        Spread.of(rates[True]), Spread.of(rates[False]), Spread.of(cost), Spread.of(shares)
    )


def run_round(engine: BuiltEngine, publish: Publish, options: Options, name: str) -> float:
    """Tokens per second of one batch, stepped and published as the engine's loop does."""
    sampling = SamplingParams(
        seed=0, temperature=0.0, max_tokens=options.output_tokens, ignore_eos=True
    )
    prompts = [
        tuple((7 * index + position) % 200 + 1 for position in range(options.prompt_tokens))
        for index in range(options.batch)
    ]
    engine.core.reset_prefix_cache()
    engine.core.submit(
        [EngineRequest(f"{name}-{i}", prompt, sampling) for i, prompt in enumerate(prompts)]
    )
    started = time.perf_counter()
    while engine.core.has_work:
        engine.core.step()
        publish()
    return options.batch * options.output_tokens / (time.perf_counter() - started)


def measure_scrapes(options: Options) -> dict[str, Spread]:
    """Milliseconds by path and load."""
    found: dict[str, list[float]] = {f"{path} {load}": [] for load in LOADS for path in PATHS}
    with started_server([options.model_dir, "--device", "cpu"]) as port:
        for load, clients in LOADS.items():
            with _load(port, clients, options):
                for _ in range(options.scrapes):
                    for path in PATHS:
                        found[f"{path} {load}"].append(_milliseconds(port, path))
    return {name: Spread.of(times) for name, times in found.items()}


LOADS = {"idle": 0, "full load": 64}  # clients: twice the sequences that are computed at once


def _milliseconds(port: int, path: str) -> float:
    started = time.perf_counter()
    get(port, path)
    taken = 1e3 * (time.perf_counter() - started)
    time.sleep(0.02)
    return taken


@contextmanager
def _load(port: int, clients: int, options: Options) -> Iterator[None]:
    """So many clients that send one request after the other, until left."""
    done = threading.Event()
    body = json.dumps(
        {
            "prompt": list(range(1, options.prompt_tokens + 1)),
            "max_tokens": options.output_tokens,
            "ignore_eos": True,
        }
    )

    def work() -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_S)
        while not done.is_set():
            connection.request(
                "POST", "/v1/completions", body, {"content-type": "application/json"}
            )
            connection.getresponse().read()
        connection.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(2.0 if clients else 0.0)  # until the batch is full
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(ANSWER_S)


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m server.bench books", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model_dir", nargs="?", default=str(DEMO), help="checkpoint (default: the demo)")
    add("--rounds", type=int, default=7, help="default %(default)s")
    add("--batch", type=int, default=32, help="sequences at once; default %(default)s")
    add("--prompt-tokens", type=int, default=64, help="per request; default %(default)s")
    add("--output-tokens", type=int, default=512, help="per request; default %(default)s")
    add("--scrapes", type=int, default=100, help="of each path; default %(default)s")
    options = Options(**vars(parser.parse_args(arguments)))
    if min(asdict(options)[name] for name in ("rounds", "batch", "scrapes")) < 1:
        parser.error("rounds, batch and scrapes must be at least 1")
    return options

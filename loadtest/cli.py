"""The command line: python -m loadtest run | sweep | replay | ceiling | compare.

Exit codes: 0 measured, and every objective held; 1 measured, and an objective, the canary or a
gauge at the end did not hold, or nothing was answered; 2 a scenario, trace or option is malformed;
3 there is no server to measure; 130 stopped by the user (what was measured until then is shown and
kept).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loadtest.errors import LoadtestError, ScenarioError
from loadtest.workload.arrivals import Arrivals, ClosedLoop, Constant, Gamma, Poisson, Recorded
from loadtest.workload.scenario import Scenario, load_scenario

SCENARIOS = Path(__file__).parent / "scenarios"
EXIT_MISSED, EXIT_INTERRUPTED = 1, 130
_DEFAULT_URL = "http://127.0.0.1:8000"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except LoadtestError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone
        return 0


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(sorted(path.stem for path in SCENARIOS.glob("*.toml")))
    parser = argparse.ArgumentParser(
        prog="loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"scenarios that ship: {names}",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="one scenario, once")
    run.add_argument("scenario", metavar="SCENARIO", help="a name that ships, or a TOML file")
    _server_options(run)
    _load_options(run)
    run.set_defaults(run=_run)
    sweep = commands.add_parser("sweep", help="one scenario at several loads, or up to its limit")
    sweep.add_argument("scenario", metavar="SCENARIO")
    loads = sweep.add_mutually_exclusive_group(required=True)
    loads.add_argument("--concurrencies", metavar="1,8,32", help="closed loops of these sizes")
    loads.add_argument("--rates", metavar="1,2,4", help="requests a second, Poisson")
    loads.add_argument(
        "--search",
        metavar="LOW:HIGH",
        help="the highest rate between these at which the scenario's objectives hold",
    )
    _server_options(sweep)
    _load_options(sweep)
    sweep.set_defaults(run=_sweep)
    replay = commands.add_parser("replay", help="a recorded trace's arrivals and lengths")
    replay.add_argument("trace", metavar="TRACE", help="CSV or JSONL: time, input, output, group")
    replay.add_argument("--scenario", default="chat", help="for everything but lengths and times")
    replay.add_argument("--speed", type=float, default=1.0, help="times as fast (default: 1)")
    _server_options(replay)
    _load_options(replay)
    replay.set_defaults(run=_replay)
    ceiling = commands.add_parser("ceiling", help="how many streams this client can drive here")
    ceiling.set_defaults(run=_ceiling)
    compare = commands.add_parser("compare", help="two results: faster, slower, not different")
    compare.add_argument("a", metavar="A.json[,A2.json]", help="one side; several runs are joined")
    compare.add_argument("b", metavar="B.json[,B2.json]")
    compare.set_defaults(run=_compare)
    return parser


def _server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", default=_DEFAULT_URL, help=f"(default: {_DEFAULT_URL})")
    parser.add_argument("--model", help="name to ask for (default: the first of /v1/models)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="sent as bearer token")
    parser.add_argument(
        "--serve", metavar="COMMAND", help="starts this server first and stops it at the end"
    )
    parser.add_argument("--no-scrape", action="store_true", help="do not read /metrics")


def _load_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, help="instead of the scenario's")
    parser.add_argument("--requests", type=int, help="instead of the scenario's")
    parser.add_argument("--rate", type=float, help="requests a second, instead of the scenario's")
    parser.add_argument("--concurrency", type=int, help="a closed loop of this size instead")
    parser.add_argument("--seed", type=int, help="instead of the scenario's")
    parser.add_argument("--warm-up", type=float, metavar="SECONDS", help="(default: detected)")
    parser.add_argument("--timeout", type=float, default=600.0, help="of a request, in seconds")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="keep the result")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="keep a report as a page")
    parser.add_argument("--quiet", action="store_true", help="no progress display")


def find_scenario(name: str) -> Scenario:
    """A scenario that ships, by name, or a file. Raises ScenarioError."""
    shipped = SCENARIOS / f"{name}.toml"
    if "/" not in name and not name.endswith(".toml"):
        if not shipped.is_file():
            names = ", ".join(sorted(path.stem for path in SCENARIOS.glob("*.toml")))
            raise ScenarioError(f"no scenario {name!r}; there are: {names}; or give a .toml file")
        return load_scenario(shipped)
    return load_scenario(Path(name))


def adjusted(scenario: Scenario, parsed: argparse.Namespace) -> Scenario:
    """The scenario with what the command line says instead. Raises ScenarioError."""
    for name in ("seconds", "requests", "rate", "concurrency", "timeout"):
        value = getattr(parsed, name, None)
        if value is not None and not 0 < value < float("inf"):
            raise ScenarioError(f"--{name} {value:g}: must be more than 0")
    if parsed.warm_up is not None and not 0 <= parsed.warm_up < float("inf"):
        raise ScenarioError(f"--warm-up {parsed.warm_up:g}: must be 0 or more")
    for option, path in (("--out", parsed.out), ("--html", parsed.html)):
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            raise ScenarioError(f"{option} {path}: no file can be written there")
    if parsed.rate is not None and parsed.concurrency is not None:
        raise ScenarioError("--rate and --concurrency exclude each other")
    if parsed.seconds is not None or parsed.requests is not None:
        scenario = replace(scenario, seconds=parsed.seconds, requests=parsed.requests)
    if parsed.seed is not None:
        scenario = replace(scenario, seed=parsed.seed)
    if parsed.concurrency is not None:
        scenario = replace(scenario, arrivals=ClosedLoop(parsed.concurrency))
    if parsed.rate is not None:
        scenario = replace(scenario, arrivals=_at_rate(scenario.arrivals, parsed.rate))
    return scenario


def _at_rate(arrivals: Arrivals | ClosedLoop, rate: float) -> Arrivals:
    """The same kind of arrivals at another rate; Poisson where the kind has none."""
    match arrivals:
        case Constant():
            return Constant(rate)
        case Gamma(cv=cv):
            return Gamma(rate, cv)
    return Poisson(rate)


def _run(parsed: argparse.Namespace) -> int:
    from loadtest import commands

    scenario = adjusted(find_scenario(parsed.scenario), parsed)
    return asyncio.run(commands.served(commands.run(scenario, parsed), parsed))


def _sweep(parsed: argparse.Namespace) -> int:
    from loadtest import commands

    scenario = adjusted(find_scenario(parsed.scenario), parsed)
    return asyncio.run(commands.served(commands.sweep(scenario, parsed), parsed))


def _replay(parsed: argparse.Namespace) -> int:
    from loadtest import commands
    from loadtest.workload.trace import read_trace

    if not 0 < parsed.speed < float("inf"):
        raise ScenarioError(f"--speed {parsed.speed:g}: must be more than 0")
    rows = read_trace(Path(parsed.trace))
    scenario = adjusted(find_scenario(parsed.scenario), parsed)
    times = Recorded(tuple(row.time for row in rows), parsed.speed)
    bounds = replace(scenario, seconds=parsed.seconds, requests=parsed.requests or len(rows))
    command = commands.replay(bounds, rows, times, parsed)
    return asyncio.run(commands.served(command, parsed))


def _ceiling(parsed: argparse.Namespace) -> int:
    from loadtest.capacity import client_capacity as ceiling

    print(ceiling.render(asyncio.run(ceiling.find_ceiling())), end="")
    return 0


def _compare(parsed: argparse.Namespace) -> int:
    from loadtest import commands

    return commands.compare(parsed)

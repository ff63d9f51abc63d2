"""What each command does, from a checked scenario to the exit code."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadtest.client.address import find_model, parse_base_url
from loadtest.errors import ScenarioError
from loadtest.load.driver import Target
from loadtest.progress import Progress
from loadtest.report.compare import compare as compare_results
from loadtest.report.compare import failures
from loadtest.report.result import RunResult, load, save
from loadtest.report.table import aligned, render, seconds
from loadtest.run import ROUTES, Options, TracedWorkload, measure
from loadtest.server.started import started
from loadtest.stats.search import Search
from loadtest.workload.arrivals import Arrivals, ClosedLoop, Poisson
from loadtest.workload.requests import Workload
from loadtest.workload.scenario import Scenario
from loadtest.workload.trace import TraceRow

EXIT_MISSED, EXIT_INTERRUPTED = 1, 130


@dataclass(frozen=True, slots=True)
class _Place:
    """The server that is measured, and the model to ask for."""

    target: Target
    model: str
    options: Options


async def served(command: Coroutine[None, None, int], parsed: argparse.Namespace) -> int:
    """Runs a command while the server of --serve lives; without that option, just runs it."""
    try:
        address, headers = parse_base_url(parsed.base_url), _headers(parsed.api_key_file)
        async with started(parsed.serve, address, headers):
            return await command
    finally:
        command.close()  # where it never began


async def run(scenario: Scenario, parsed: argparse.Namespace) -> int:
    place = await _place(scenario, parsed)
    result = await _measured(scenario, place, parsed, label=scenario.name)
    print(render(result), end="")
    _keep([result], parsed)
    return _exit_code([result])


async def replay(
    scenario: Scenario, rows: tuple[TraceRow, ...], times: Arrivals, parsed: argparse.Namespace
) -> int:
    place = await _place(scenario, parsed)
    workload = TracedWorkload(scenario, place.model, rows)
    scenario = replace(scenario, arrivals=times)
    result = await _measured(scenario, place, parsed, label="replay", workload=workload)
    print(render(result), end="")
    _keep([result], parsed)
    return _exit_code([result])


async def sweep(scenario: Scenario, parsed: argparse.Namespace) -> int:
    place = await _place(scenario, parsed)
    if parsed.search:
        return await _search(scenario, place, parsed)
    loads: list[Arrivals | ClosedLoop] = []
    if parsed.concurrencies:
        loads += [ClosedLoop(round(n)) for n in _numbers("--concurrencies", parsed.concurrencies)]
    else:
        loads += [Poisson(rate) for rate in _numbers("--rates", parsed.rates)]
    results = []
    for number, load_ in enumerate(loads):
        one = _other_prompts(replace(scenario, arrivals=load_), number)
        results.append(await _measured(one, place, parsed, label=load_.describe()))
        if results[-1].interrupted:
            break
    print(_sweep_table(results))
    print()
    print(render(results[-1]), end="")
    _keep(results, parsed)
    return _exit_code(results)


async def _search(scenario: Scenario, place: _Place, parsed: argparse.Namespace) -> int:
    if not scenario.objectives:
        raise ScenarioError(f"{scenario.name}: --search needs [objectives] in the scenario")
    low, high = _range(parsed.search)
    search = Search(low, high)
    results: list[RunResult] = []
    while (rate := search.next_rate) is not None:
        one = _other_prompts(replace(scenario, arrivals=Poisson(rate)), len(results))
        result = await _measured(one, place, parsed, label=f"{rate:.3g} requests/s")
        results.append(result)
        if result.interrupted or result.goodput is None:
            break
        search.note(rate, result.goodput.share)
    print(_sweep_table(results))
    print()
    print(search.verdict)
    _keep(results, parsed)
    return EXIT_INTERRUPTED if any(r.interrupted for r in results) else int(search.best is None)


def _other_prompts(scenario: Scenario, number: int) -> Scenario:
    """Run ``number`` of a sweep: with the same prompts it would meet its predecessor's cache."""
    return replace(scenario, seed=scenario.seed + number)


def compare(parsed: argparse.Namespace) -> int:
    """Prints the differences. Exit code 1 where b fails more, or is slower in any of them."""
    sides = [[load(Path(name)) for name in text.split(",")] for text in (parsed.a, parsed.b)]
    failed = failures(*sides)
    differences = compare_results(*sides)
    if not all(failed.asked):
        raise ScenarioError("nothing to compare: one side has no request in its steady part")
    scenarios = {result["scenario"]["arrivals"] for side in sides for result in side}
    if len(scenarios) > 1:
        print(f"! the loads differ: {'; '.join(sorted(scenarios))}\n")
    for name, side in zip("AB", sides, strict=True):
        for line in dict.fromkeys(line for result in side for line in result["complaints"]):
            print(f"! {name}: {line}")
    of = [f"{bad} of {asked}" for bad, asked in zip(failed.failed, failed.asked, strict=True)]
    points = failed.difference
    change = f"{points.value:+.1%} [{points.low:+.1%}, {points.high:+.1%}]"
    rows = [["", "A", "B", "B / A [interval]", "B is"], ["failed", *of, change, failed.verdict]]
    for one in differences:
        shown = [f"{value:.1f}" for value in (one.a, one.b)]
        if one.lower_is_better:
            shown = [seconds(value) for value in (one.a, one.b)]
        ratio = f"{one.ratio.value:.3f} [{one.ratio.low:.3f}, {one.ratio.high:.3f}]"
        rows.append([one.name, *shown, ratio, one.verdict if failed.comparable else "-"])
    print(aligned(rows))
    if not failed.comparable:
        print(
            f"\nB {failed.verdict}: a server that answers fewer requests is quicker with those, so "
            "nothing else is judged. Compare at a load that both serve."
        )
        return int(failed.verdict == "fails more")
    print(
        "\nAll intervals of ratios hold together with 95 %; where one holds 1, the sides do not "
        "differ there. The failed are compared by shares, b's less a's."
    )
    worse = failed.verdict == "fails more"
    return int(worse or any(one.verdict == "slower" for one in differences))


async def _place(scenario: Scenario, parsed: argparse.Namespace) -> _Place:
    address = parse_base_url(parsed.base_url)
    headers = _headers(parsed.api_key_file)
    model = parsed.model or await find_model(address, headers)
    options = Options(timeout_s=parsed.timeout, scrape=not parsed.no_scrape, warm_up=parsed.warm_up)
    return _Place(Target(address, ROUTES[scenario.api], headers), model, options)


def _headers(key_file: Path | None) -> dict[str, str]:
    if key_file is None:
        return {}
    try:
        key = key_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"--api-key-file {key_file}: {error}") from None
    if not key.isprintable() or not key:
        raise ScenarioError(f"--api-key-file {key_file}: holds no key of one line")
    return {"Authorization": f"Bearer {key}"}


async def _measured(
    scenario: Scenario,
    place: _Place,
    parsed: argparse.Namespace,
    *,
    label: str,
    workload: Workload | None = None,
) -> RunResult:
    """One measurement, stopped early and kept by the first Ctrl-C."""
    progress = None if parsed.quiet else Progress(sys.stderr, label)
    task = asyncio.create_task(
        measure(
            scenario,
            place.target,
            place.model,
            workload=workload,
            options=place.options,
            show=progress,
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        if progress is not None:
            progress.done()


def _keep(results: Sequence[RunResult], parsed: argparse.Namespace) -> None:
    """Several results go to FILE-1.json, FILE-2.json, ..."""
    if parsed.out is not None:
        for number, result in enumerate(results, 1):
            path = parsed.out
            if len(results) > 1:
                path = path.with_name(f"{path.stem}-{number}{path.suffix}")
            save(result, path)
            print(f"kept in {path}", file=sys.stderr)
    if parsed.html is not None:
        from loadtest.report.html import page

        parsed.html.write_text(page(results), encoding="utf-8")
        print(f"report in {parsed.html}", file=sys.stderr)


def _exit_code(results: Sequence[RunResult]) -> int:
    if any(result.interrupted for result in results):
        return EXIT_INTERRUPTED
    return 0 if all(result.is_good for result in results) else EXIT_MISSED


def _sweep_table(results: Sequence[RunResult]) -> str:
    rows = [
        ["load", "requests/s", "tokens/s", "TTFT p50", "TTFT p95", "ITL p50", "ITL p95", "failed"]
    ]
    for result in results:
        cells = []
        for name in ("ttft", "itl"):
            summary = result.summaries.get(name)
            cells += [
                "" if summary is None else seconds(summary.percentiles[value].value)
                for value in (50.0, 95.0)
            ]
        failed = sum(result.outcomes.values()) - result.outcomes["ok"]
        rows.append(
            [
                str(result.scenario["arrivals"]) + (" !" if result.complaints else ""),
                f"{result.rates.requests:.2f}",
                f"{result.rates.output_tokens:.1f}",
                *cells,
                str(failed),
            ]
        )
    said = [
        f"! {result.scenario['arrivals']}: {line}"
        for result in results
        for line in result.complaints
    ]
    return "\n".join([aligned(rows), *said])


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or any(not 0 < number < 1e6 for number in numbers):
        raise ScenarioError(f"{option} {text}: give numbers above 0, with commas between them")
    return numbers


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 < low < high:
        raise ScenarioError(f"--search {text}: give LOW:HIGH, both above 0, such as 0.5:32")
    return low, high

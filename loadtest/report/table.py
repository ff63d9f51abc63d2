"""A result as a table for a terminal, the definitions below it. One function, plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadtest.report.result import RunResult
from loadtest.server.readings import NOT_ITS_OWN, QUEUE_DEFINITION
from loadtest.stats.measures import CONFIDENCE, PERCENTILES, Estimate, shown
from loadtest.stats.objectives import WANTED_SHARE

_MIB = 2.0**20
_WIDEST = 160
_BOUNDED = (50.0, 95.0, 99.0)  # whose intervals are shown; a result file has all


def render(result: RunResult) -> str:
    """The whole text, complaints first: a figure that must not be believed is not shown alone."""
    parts = [_head(result)]
    if result.complaints:
        parts.append("\n".join(f"! {line}" for line in result.complaints))
    parts.append(_measures(result))
    parts.append(_rates(result))
    if result.goodput is not None:
        parts.append(_goodput(result))
    if result.canary is not None:
        parts.append(_chaos(result))
    if result.server.readings:
        parts.append(_server(result))
    parts.append("\n".join(definitions(result)))
    return "\n\n".join(parts) + "\n"


def seconds(value: float) -> str:
    """A time that reads well: 3 digits, in the unit that suits it."""
    if value == 0:
        return "0"
    if abs(value) < 0.0009995:
        return f"{value * 1e6:.0f} us"
    if abs(value) < 0.9995:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:.0f} s"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *padded]).rstrip())
    return "\n".join(lines)


def _head(result: RunResult) -> str:
    scenario, outcomes = result.scenario, result.outcomes
    failed = {name: count for name, count in outcomes.items() if name != "ok"}
    mix = ", ".join(f"{count} {name}" for name, count in sorted(failed.items())) or "none"
    reasons = ", ".join(f"{count} {name}" for name, count in result.finish_reasons.most_common())
    said = [f"first {name}: {detail}" for name, detail in result.failures.items() if detail]
    return "\n".join(
        (
            f"{scenario['name']} against {result.target}, {result.date}, client: {result.machine}",
            f"arrivals    {scenario['arrivals']}",
            f"requests    {sum(outcomes.values())} in {result.seconds:.1f} s; "
            f"ok {outcomes['ok']}; failed: {mix}",
            *(f"            {line[:_WIDEST]}" for line in said),
            f"finished    {reasons or 'none'}",
            f"counted     {len(result.counted)} requests of seconds {result.steady.start:.1f} to "
            f"{result.steady.end:.1f}: {result.steady.reason}",
        )
    )


def _measures(result: RunResult) -> str:
    if not result.summaries:
        return "no complete answer: nothing to measure"
    rows = [["", *(f"p{value:g}" for value in PERCENTILES), "mean", "max", "n"]]
    bounds = [[f"{CONFIDENCE:.0%} intervals", *(f"p{value:g}" for value in _BOUNDED)]]
    for measure in shown(result.closed_loop):
        summary = result.summaries.get(measure.name)
        if summary is None:
            continue
        values = [seconds(summary.percentiles[value].value) for value in PERCENTILES]
        ends = [seconds(summary.mean), seconds(summary.most), str(summary.count)]
        rows.append([measure.title, *values, *ends])
        bounds.append(
            [measure.title, *(_interval(summary.percentiles[value]) for value in _BOUNDED)]
        )
    return f"{aligned(rows)}\n\n{aligned(bounds)}"


def _interval(estimate: Estimate) -> str:
    return f"[{seconds(estimate.low)}, {seconds(estimate.high)}]"


def _rates(result: RunResult) -> str:
    rates, client = result.rates, result.client
    return "\n".join(
        (
            f"requests/s  {rates.requests:.2f}",
            f"tokens/s    {rates.output_tokens:.1f} out, {rates.input_tokens:.1f} in",
            f"client      {client.cpu:.0%} of a core, event loop late by "
            f"{seconds(client.lag_p50)} (median), {seconds(client.lag_p99)} (p99)",
        )
    )


def _goodput(result: RunResult) -> str:
    goodput = result.goodput
    if goodput is None:
        return ""
    bounds = ", ".join(f"{name} <= {bound:g} s" for name, bound in result.objectives.items())
    missed = ", ".join(f"{count} {name}" for name, count in goodput.missed.items() if count)
    share = goodput.share
    return "\n".join(
        (
            f"objectives  {bounds}",
            f"goodput     {goodput.rate:.2f} requests/s; {share.value:.1%} good "
            f"[{share.low:.1%}, {share.high:.1%}] of {goodput.count}, {WANTED_SHARE:.0%} wanted: "
            + ("held" if goodput.holds else "MISSED")
            + (f" ({missed})" if missed else ""),
        )
    )


def _chaos(result: RunResult) -> str:
    lines = [
        f"{kind:<12}{', '.join(f'{count} {name}' for name, count in outcomes.most_common())}"
        for kind, outcomes in sorted(result.chaos.items())
    ]
    canary = result.canary
    if canary is not None:
        same = canary.asked - len(canary.changed) - len(canary.failed)
        lines.append(f"{'canary':<12}{same} of {canary.asked} answers the same to the letter")
    return "\n".join(lines)


def _server(result: RunResult) -> str:
    series = result.server
    facts = sorted({fact for reading in series.readings for fact in reading.gauges})
    rows = [[f"server ({series.server})", "at start", "most", "at end"]]
    for fact in facts:
        values = [r.gauges[fact] for r in series.readings if fact in r.gauges]
        show = "{:.1%}" if fact.endswith("_usage") else "{:g}"
        rows.append([fact, *map(show.format, (values[0], max(values), values[-1]))])
    parts = [aligned(rows), "", *_server_side(result)]
    memory = series.readings[-1].memory
    if memory:
        kinds = ", ".join(
            f"{kind} {memory[kind] / _MIB:,.0f}"
            for kind in sorted(memory, key=lambda kind: -memory[kind])
            if kind not in NOT_ITS_OWN and round(memory[kind] / _MIB)
        )
        parts.append(f"memory      at the end, in MiB: {kinds}")
    if series.failed:
        parts.append(f"({series.failed} scrapes failed)")
    return "\n".join(parts)


def _server_side(result: RunResult) -> Iterator[str]:
    """The lines that two readings give."""
    side = result.server_side
    if side is None:
        return
    if side.queue is not None:
        within = ", ".join(
            f"{share:.0%} within {'its last bound' if bound is None else seconds(bound)}"
            for share, bound in side.queue.bounds
        )
        mean = seconds(side.queue.mean)
        yield f"queue       mean {mean}; {within} (of {side.queue.count} requests)"
    if side.prompt_tokens is not None and side.generation_tokens is not None:
        usage = sum(record.completion_tokens or 0 for record in result.records)
        yield (
            f"tokens      {side.prompt_tokens:,.0f} in, {side.generation_tokens:,.0f} out by the "
            f"server's count; {usage:,} out by its answers' usage"
        )
    if side.prefix_hits is not None:
        yield f"prefixes    {side.prefix_hits:.1%} of prompt tokens found in the prefix cache"
    if side.preemptions:
        yield f"preempted   {side.preemptions:,.0f} times"


def definitions(result: RunResult) -> list[str]:
    """A line for each measure that is shown, and what to know of them all."""
    lines = [
        f"Intervals of {CONFIDENCE:.0%} come from a bootstrap over requests. "
        "Times of events are their arrival at this client."
    ]
    lines += [
        f"{measure.title}: {measure.definition}."
        for measure in shown(result.closed_loop)
        if measure.name in result.summaries
    ]
    lines.append(
        "requests/s, tokens/s: over the time in which the counted requests ran, from the first "
        f"one's sending to the last one's end ({seconds(result.rates.seconds)})."
    )
    if result.server_side is not None and result.server_side.queue is not None:
        lines.append(f"queue: {QUEUE_DEFINITION}.")
    if result.closed_loop:
        lines.append(
            "A closed loop asks a slow server less often, so its worst moments are "
            "under-represented (coordinated omission): for latencies under a given load use an "
            "open schedule."
        )
    return lines

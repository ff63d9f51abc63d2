"""When each alarm fires, with which words, and when it stays quiet. A scrape every 30 seconds,
unless ``interval`` says otherwise.

Values are written as promtool takes them: ``1x10`` is 1 and ten more of it, ``0+5x10`` rises by 5
ten times, ``_x4`` are four missed scrapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 2**20
TARGET = {"job": "quire", "instance": "a:8000"}
BY_WHAT = {**TARGET, "what": "engine_process_resident"}
BY_KIND = {**TARGET, "device": "cpu", "kind": "unaccounted"}


@dataclass(frozen=True, slots=True)
class Fires:
    """``at`` the moment it fires, ``before`` a moment at which it does not yet."""

    alarm: str
    series: Mapping[str, str]
    before: str
    at: str
    description: str
    interval: str = "30s"
    labels: Mapping[str, str] = field(default_factory=lambda: TARGET)


@dataclass(frozen=True, slots=True)
class Quiet:
    """``why`` nobody has to be told."""

    alarm: str
    why: str
    series: Mapping[str, str]
    at: tuple[str, ...]


def target(name: str, **labels: str) -> str:
    """A series of the one server."""
    pairs = ", ".join(f'{label}="{value}"' for label, value in {**TARGET, **labels}.items())
    return f"{name}{{{pairs}}}"


def ended(outcome: str) -> str:
    return target("quire_requests_total", route="/v1/completions", outcome=outcome)


UP, ENGINE = target("up"), target("quire_engine_up")
RESTARTS = target("quire_engine_restarts_total")
USAGE = target("quire_kv_cache_usage_ratio")
PREEMPTIONS = target("quire_preemptions_total")
UNACCOUNTED = target("quire_memory_bytes", device="cpu", kind="unaccounted")
RUNTIME = target("quire_memory_bytes", device="cpu", kind="runtime")
RESIDENT = target("quire_host_memory_bytes", what="engine_process_resident")
PINNED = target("quire_host_memory_bytes", what="pinned")
AGE = target("quire_queue_age_seconds")
FAILED_STEPS = target("quire_engine_failed_steps_total")

FIRES = (
    Fires(
        "QuireTargetDown",
        {UP: "1x10 0x10"},
        before="5m30s",
        at="6m30s",
        description="No scrape of a:8000 has succeeded for a minute: the process is gone, or its "
        "port cannot be reached.",
    ),
    Fires(
        "QuireAbsent",
        {ENGINE: "1x10 stale"},
        before="6m",
        at="8m",
        description="No target has given quire_engine_up for two minutes, so nothing else here "
        "can be known.",
        labels={},
    ),
    Fires(
        "QuireScrapeGaps",
        {UP: "1 1 1 0 " * 15},
        before="4m30s",
        at="15m30s",
        # Ten minutes before, there was no scrape: whether that one counts differs by version.
        interval="20s",
        description="Only 76.67% of the scrapes of the last 10 minutes succeeded: graphs have "
        "holes, and rates are too low.",
    ),
    Fires(
        "QuireEngineDown",
        {ENGINE: "1x10 0x20"},
        before="10m",
        at="11m",
        description="The server answers scrapes, but its engine has not been ready for five "
        "minutes: every request gets a 503.",
    ),
    Fires(
        "QuireEngineRestarts",
        {RESTARTS: "0x30 2x10"},
        before="15m",
        at="16m",
        description="2 restarts in the last 15 minutes. Each ended all open requests in an error.",
    ),
    Fires(
        "QuireKVCacheNearlyFull",
        {USAGE: "0.5x10 0.95x20"},
        before="10m",
        at="11m",
        description="95% of the blocks have been in use for five minutes. New requests wait, and "
        "running ones may be preempted.",
    ),
    Fires(
        "QuirePreemptions",
        {PREEMPTIONS: "0x10 0+15x20"},
        before="10m",
        at="15m",
        description="0.50 sequences a second give up their blocks and are computed again: the KV "
        "cache is too small for this load.",
    ),
    Fires(
        "QuireUnaccountedMemoryGrows",
        {UNACCOUNTED: f"{5 * MIB}x60 {133 * MIB}x60"},
        before="39m",
        at="41m",
        description="What no kind accounts for has grown by 128MiB within six hours, and has "
        "stayed so for ten minutes.",
        labels=BY_KIND,
    ),
    Fires(  # half a GiB a day
        "QuireUnaccountedMemoryGrows",
        {UNACCOUNTED: f"{5 * MIB}+{MIB}x200"},
        before="180m",
        at="210m",
        description="What no kind accounts for has grown by 70MiB within six hours, and has "
        "stayed so for ten minutes.",
        interval="3m",
        labels=BY_KIND,
    ),
    Fires(
        "QuireHostMemoryGrows",
        {RESIDENT: f"{500 * MIB}+{MIB}x200"},
        before="75m",
        at="95m",
        description="engine_process_resident has grown by 60MiB in the last half hour, and by "
        "more than 32 MiB in the one before.",
        labels=BY_WHAT,
    ),
    Fires(
        "QuireQueueAge",
        {AGE: "0x10 10+30x10"},
        before="6m",
        at="7m",
        description="The oldest request in the queue has waited for 1m 40s. Past --queue-timeout "
        "(60 s unless set) it gets a 503.",
    ),
    Fires(
        "QuireOverloaded",
        {ended("stop"): "0+9x40", ended("overloaded"): "0+1x40"},
        before="4m",
        at="10m",
        description="10% of the requests of the last five minutes got a 429 or 503: queue full, "
        "waited too long, or server stopping.",
    ),
    Fires(
        "QuireErrorRate",
        {ended("stop"): "0+9x40", ended("error"): "0x10 0+1x30"},
        before="8m",
        at="16m",
        description="10% of the requests of the last five minutes ended in the server's own error "
        "(5xx).",
    ),
    Fires(
        "QuireStepsFail",
        {FAILED_STEPS: "0x30 3x10"},
        before="15m",
        at="16m",
        description="3 steps failed in the last 15 minutes. A request whose step fails twice gets "
        "an error.",
    ),
)

QUIET = (
    Quiet("QuireTargetDown", "one scrape was missed", {UP: "1x5 0 1x10"}, ("2m30s", "3m30s")),
    Quiet("QuireTargetDown", "it is another job's", {'up{job="node"}': "0x20"}, ("8m",)),
    Quiet("QuireAbsent", "an engine that is down is scraped", {ENGINE: "0x20"}, ("9m",)),
    Quiet("QuireScrapeGaps", "one gap in ten minutes", {UP: "1x10 0 1x30"}, ("6m", "10m", "15m")),
    Quiet("QuireScrapeGaps", "it is down, which is another alarm", {UP: "0x60"}, ("29m",)),
    Quiet("QuireEngineDown", "it loads", {ENGINE: "0x8 1x20"}, ("4m", "8m")),
    Quiet("QuireEngineRestarts", "the server began anew", {RESTARTS: "3x10 0x30"}, ("6m", "18m")),
    Quiet("QuireKVCacheNearlyFull", "a peak", {USAGE: "0.5x5 0.99x6 0.5x20"}, ("5m", "9m")),
    Quiet("QuireKVCacheNearlyFull", "just below the bound", {USAGE: "0.9x40"}, ("18m",)),
    Quiet("QuirePreemptions", "one in a while", {PREEMPTIONS: "0x10 1x30"}, ("6m", "12m")),
    Quiet(
        "QuireUnaccountedMemoryGrows",
        "it grew while the server warmed up, by less than the bound",
        {UNACCOUNTED: f"{-3 * MIB}x20 {50 * MIB}x60"},
        ("15m", "35m"),
    ),
    Quiet(
        "QuireUnaccountedMemoryGrows",
        "another kind grew",
        {RUNTIME: f"{5 * MIB}x60 {933 * MIB}x60", UNACCOUNTED: f"{5 * MIB}x120"},
        ("41m",),
    ),
    Quiet(
        "QuireHostMemoryGrows",
        "it grew once and settled",
        {RESIDENT: f"{500 * MIB}x20 {900 * MIB}x200"},
        ("15m", "45m", "75m", "100m", "130m"),
    ),
    Quiet(
        "QuireHostMemoryGrows",
        "it comes and goes with the load",
        {RESIDENT: " ".join([f"{500 * MIB}x10 {700 * MIB}x10"] * 10)},
        ("45m", "65m", "95m"),
    ),
    Quiet(
        "QuireHostMemoryGrows",
        "pinned memory is no process",
        {PINNED: f"{500 * MIB}+{MIB}x200"},
        ("95m",),
    ),
    Quiet("QuireQueueAge", "a wait within bounds", {AGE: "10x20"}, ("9m",)),
    Quiet("QuireQueueAge", "one long wait that ended", {AGE: "0x5 20 0x10"}, ("2m30s", "3m30s")),
    Quiet(
        "QuireOverloaded",
        "one in a hundred",
        {ended("stop"): "0+99x40", ended("overloaded"): "0+1x40"},
        ("15m",),
    ),
    Quiet("QuireErrorRate", "no request at all", {ended("error"): "0x40"}, ("15m",)),
    Quiet(
        "QuireErrorRate",
        "clients that go away and bad requests are no errors of ours",
        {ended("error"): "0x40", ended("abort"): "0+5x40", ended("invalid"): "0+5x40"},
        ("15m",),
    ),
    Quiet("QuireStepsFail", "a new engine counts from zero", {FAILED_STEPS: "3x10 0x30"}, ("12m",)),
)

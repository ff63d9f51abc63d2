"""A scenario: what is sent, when, for how long, and its objectives. One TOML file, one dataclass.

name = "chat"                     # shown in reports
api = "completions"               # or "chat"
seed = 1                          # every draw follows from it

[arrivals]                        # closed | constant | poisson | gamma | ramp
kind = "poisson"
rate = 4.0                        # requests a second

[run]
seconds = 60                      # or requests = 500, or both: whichever comes first

[[requests]]                      # a mix: one table a kind, drawn by weight
weight = 3
prompt_tokens = 512               # or {low, high}, or {median, p95}: log-normal
output_tokens = {low = 64, high = 256}
shared_prefix_tokens = 256        # the first tokens are those of the request's group
prefix_groups = 4
turns = 3                         # a conversation: each turn repeats what was said before

[fields]                          # further fields of every request, passed on as they are
temperature = 0.0

[objectives]                      # seconds; a request that meets all of them is good
ttft = 0.5
tpot = 0.05

[chaos]                           # shares of requests that misbehave
cancel = 0.1
"""

from __future__ import annotations

import math
import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.errors import ScenarioError
from loadtest.workload.arrivals import Arrivals, ClosedLoop, Constant, Gamma, Poisson, Ramp
from loadtest.workload.toml_table import Table

MAX_TOKENS = 1 << 22
MAX_RATE = 1e6
MAX_CONCURRENCY = 100_000
MAX_SECONDS = 7 * 24 * 3600.0
Z95 = 1.6448536269514722  # the normal distribution's 95th percentile
_OBJECTIVES = ("ttft", "ttft_intended", "tpot", "e2e", "e2e_intended", "itl")
_CHAOS = ("cancel", "disconnect", "slow_reader", "malformed")
_OURS = ("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "stream", "seed")
_OURS_ALSO = ("stream_options", "ignore_eos")


@dataclass(frozen=True, slots=True)
class Length:
    """A number of tokens: fixed, uniform between two (both included), or log-normal.

    For a log-normal ``low`` is the median and ``high`` the 95th percentile.
    """

    kind: str
    low: int
    high: int

    def draw(self, generator: random.Random) -> int:
        if self.kind == "lognormal":
            sigma = math.log(self.high / self.low) / Z95
            return max(1, round(self.low * math.exp(generator.gauss(0.0, sigma))))
        return generator.randint(self.low, self.high)

    def describe(self) -> str:
        if self.kind == "lognormal":
            return f"median {self.low}, 95 % up to {self.high}"
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True, slots=True)
class RequestKind:
    """One kind of the mix."""

    weight: float
    prompt: Length
    output: Length
    shared_prefix_tokens: int = 0
    prefix_groups: int = 1
    turns: int = 1


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    description: str
    api: str
    seed: int
    arrivals: Arrivals | ClosedLoop
    seconds: float | None
    requests: int | None
    kinds: tuple[RequestKind, ...]
    prompt_form: str  # "tokens": ids, so that lengths are exact; "text": words
    stream: bool
    ignore_eos: bool
    fields: Mapping[str, Any] = field(default_factory=dict)
    objectives: Mapping[str, float] = field(default_factory=dict)
    chaos: Mapping[str, float] = field(default_factory=dict)


def load_scenario(path: Path) -> Scenario:
    """Raises ScenarioError that names the file and the key."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not TOML: {error}") from None
    return read_scenario(values, str(path))


def read_scenario(values: Mapping[str, Any], source: str) -> Scenario:
    """A scenario from a parsed file. Raises ScenarioError."""
    table = Table(values, source)
    run = table.table("run")
    seconds = run.number("seconds", low=0.001, high=MAX_SECONDS) if "seconds" in run else None
    requests = run.integer("requests", low=1, high=10**8) if "requests" in run else None
    if seconds is None and requests is None:
        raise table.error("run", "needs seconds, requests or both")
    run.finish()
    api = table.choice("api", ("completions", "chat"), "completions")
    scenario = Scenario(
        name=table.text("name"),
        description=table.text("description", ""),
        api=api,
        seed=table.integer("seed", 1, low=0, high=2**63 - 1),
        arrivals=_arrivals(table.table("arrivals")),
        seconds=seconds,
        requests=requests,
        kinds=_kinds(table, api),
        prompt_form=_prompt_form(table, api),
        stream=table.flag("stream", True),
        ignore_eos=table.flag("ignore_eos", True),
        fields=_fields(table),
        objectives=_numbers(table.table("objectives"), _OBJECTIVES, high=3600.0),
        chaos=_chaos(table),
    )
    table.finish()
    return scenario


def _arrivals(table: Table) -> Arrivals | ClosedLoop:
    kind = table.choice("kind", ("closed", "constant", "poisson", "gamma", "ramp"))

    def rate(key: str) -> float:
        return table.number(key, low=1e-4, high=MAX_RATE)

    arrivals: Arrivals | ClosedLoop
    match kind:
        case "closed":
            arrivals = ClosedLoop(table.integer("concurrency", low=1, high=MAX_CONCURRENCY))
        case "constant":
            arrivals = Constant(rate("rate"))
        case "poisson":
            arrivals = Poisson(rate("rate"))
        case "gamma":
            arrivals = Gamma(rate("rate"), table.number("cv", low=0.05, high=20.0))
        case _:
            seconds = table.number("seconds", low=0.1, high=MAX_SECONDS)
            arrivals = Ramp(rate("start"), rate("end"), seconds)
    table.finish()
    return arrivals


def _kinds(table: Table, api: str) -> tuple[RequestKind, ...]:
    found = []
    for item in table.tables("requests"):
        prompt = _length(item, "prompt_tokens")
        shared = item.integer("shared_prefix_tokens", 0, low=0, high=MAX_TOKENS)
        if shared and shared >= prompt.low:
            raise item.error(
                "shared_prefix_tokens", f"is {shared}; the shortest prompt has {prompt.low}"
            )
        turns = item.integer("turns", 1, low=1, high=1000)
        if turns > 1 and api != "chat":
            raise item.error("turns", 'a conversation needs api = "chat"')
        found.append(
            RequestKind(
                weight=item.number("weight", 1.0, low=1e-9, high=1e9),
                prompt=prompt,
                output=_length(item, "output_tokens"),
                shared_prefix_tokens=shared,
                prefix_groups=item.integer("prefix_groups", 1, low=1, high=10**6),
                turns=turns,
            )
        )
        item.finish()
    if not found:
        raise table.error("requests", "needs at least one table [[requests]]")
    return tuple(found)


def _length(table: Table, key: str) -> Length:
    if not isinstance(table.raw(key, 0), dict):
        tokens = table.integer(key, low=1, high=MAX_TOKENS)
        return Length("uniform", tokens, tokens)
    given = table.table(key)
    names, kind = (
        (("median", "p95"), "lognormal") if "median" in given else (("low", "high"), "uniform")
    )
    low, high = (given.integer(name, low=1, high=MAX_TOKENS) for name in names)
    if high < low:
        raise given.error(names[1], f"is {high}, less than {names[0]} {low}")
    given.finish()
    return Length(kind, low, high)


def _prompt_form(table: Table, api: str) -> str:
    default = "text" if api == "chat" else "tokens"
    form = table.choice("prompt_form", ("tokens", "text"), default)
    if form == "tokens" and api == "chat":
        raise table.error("prompt_form", "a chat takes text only")
    return form


def _fields(table: Table) -> dict[str, Any]:
    fields = table.raw("fields", {})
    if not isinstance(fields, dict):
        raise table.error("fields", "must be a table")
    for name in fields:
        if name in (*_OURS, *_OURS_ALSO):
            raise table.error(f"fields.{name}", "is set by the scenario's own keys")
    if fields.get("n", 1) != 1:
        raise table.error("fields.n", "must be 1: times are those of one answer a request")
    return fields


def _chaos(table: Table) -> dict[str, float]:
    shares = _numbers(table.table("chaos"), _CHAOS, high=1.0)
    if sum(shares.values()) > 1:
        raise table.error("chaos", f"shares add up to {sum(shares.values()):g}, more than 1")
    return shares


def _numbers(table: Table, names: tuple[str, ...], high: float) -> dict[str, float]:
    found = {name: table.number(name, low=0.0, high=high) for name in names if name in table}
    for name in names:
        table.raw(name, 0)  # known, whether given or not
    table.finish()
    return found

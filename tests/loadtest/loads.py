"""Short cuts to a measurement of the fake server."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

from loadtest.client.connection import Address
from loadtest.load.driver import Target
from loadtest.report.result import RunResult
from loadtest.run import ROUTES, Options, measure
from loadtest.workload.scenario import Scenario, read_scenario

SCENARIO: dict[str, Any] = {
    "name": "scripted",
    "arrivals": {"kind": "constant", "rate": 50.0},
    "run": {"requests": 20},
    "requests": [{"prompt_tokens": 8, "output_tokens": 5}],
}


def scenario(script: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    values = {**SCENARIO, **changes}
    values["fields"] = {**values.get("fields", {}), "script": script or {}}
    return read_scenario(values, "test")


def run(port: int, one: Scenario, options: Options | None = None) -> RunResult:
    target = Target(Address("127.0.0.1", port), ROUTES[one.api], {})
    return asyncio.run(measure(one, target, "fake", options=options or Options(timeout_s=20)))


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return json.loads(answer.read())

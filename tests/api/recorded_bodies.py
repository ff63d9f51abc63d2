"""Bodies by the thousand, and what each was answered when they were recorded.

    python -m tests.api.recorded_bodies [words.jsonl]    writes the answers anew, from the server
        as it is, to the bodies that are there; and what errors say, for a look at what changed

A line of answers.jsonl is [path, body, status] and, of a refusal, code and param too. A body that
is compact JSON stands there as it is, any other as a string. It was recorded before requests became
pydantic models, each field of a request alone with every kind of value and at its bounds, and
hundreds with several faults; test_recorded_bodies compares. Another body is a line [path, body, 0]
more. Write it anew only together with a line in CHANGELOG for each answer that differs, which a
diff of the file shows.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.api.api_client import started
from tests.api.api_fakes import FakeEngine, make_state

FILE = Path(__file__).with_name("answers.jsonl")


@dataclass(frozen=True)
class Recorded:
    """``code`` and ``param`` are None where the answer is no error."""

    path: str
    body: bytes
    status: int
    code: str | None
    param: str | None

    def line(self) -> str:
        error = [] if self.code is None else [self.code, self.param]
        text = self.body.decode("utf-8", "surrogateescape")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        is_compact = isinstance(value, dict) and compact(value) == text
        return compact([self.path, value if is_compact else text, self.status, *error])

    @classmethod
    def of_line(cls, line: str) -> Recorded:
        path, body, status, *error = json.loads(line)
        text = body if isinstance(body, str) else compact(body)
        code, param = error or (None, None)
        return cls(path, text.encode("utf-8", "surrogateescape"), status, code, param)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def recorded() -> list[Recorded]:
    return [Recorded.of_line(line) for line in FILE.read_text().splitlines()]


async def answers(asked: list[Recorded]) -> list[tuple[Recorded, httpx.Response]]:
    found = []
    async with started(make_state(FakeEngine())) as client:
        for one in asked:
            headers = {"content-type": "application/json"}
            response = await client.post(one.path, content=one.body, headers=headers)
            error = response.json()["error"] if response.status_code != 200 else {}
            code, param = error.get("code"), error.get("param")
            found.append(
                (Recorded(one.path, one.body, response.status_code, code, param), response)
            )
    return found


def main() -> None:
    found = asyncio.run(answers(recorded()))
    FILE.write_text("".join(one.line() + "\n" for one, _ in found))
    if sys.argv[1:]:
        words = ([one.line(), response.json().get("error")] for one, response in found if one.code)
        Path(sys.argv[1]).write_text("".join(json.dumps(pair) + "\n" for pair in words))


if __name__ == "__main__":
    main()

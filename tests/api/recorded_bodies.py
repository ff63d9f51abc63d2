"""Bodies by the thousand, and what each was answered when they were recorded.

    python tests/api/recorded_bodies.py     writes answers.jsonl anew, from the server as it is

A line is [path, body, status] and, of a refusal, code and param too. A body that is compact JSON
stands there as it is, any other as a string. Recorded before requests became
pydantic models: test_recorded_bodies compares. Write it anew only together with a line in
CHANGELOG for each answer that differs, which a diff of the file shows.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from server.api.app import create_app
from tests.api.api_client import client_of
from tests.api.api_fakes import FakeEngine, make_state
from tests.api.asks_for_nothing import (
    BOTH,
    CHAT,
    COMPLETIONS,
    LABELS,
    MESSAGE_KEYS,
    NOTHING,
    PROGRAMS,
    REFUSED,
    REFUSED_MESSAGES,
    REQUIRED,
    SERVED,
)
from tests.api.bad_requests import ServerFacts, cases

FILE = Path(__file__).with_name("answers.jsonl")
FACTS = ServerFacts("tiny", vocab_size=300, max_model_len=256, max_body_bytes=1024 * 1024)
MAX_BYTES = 2500  # of a body that is kept; the table of bad requests holds the larger ones
HELLO = {"role": "user", "content": "a"}
BASE: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "a", "max_tokens": 3},
    CHAT: {"messages": [HELLO], "max_tokens": 3},
}
HUGE = 10**30
ANYTHING: list[Any] = [
    *(None, True, False, 0, 1, -1, 0.5, 1.0, -0.5, HUGE, -HUGE),
    *("", "x", "1", [], [None], [1], [-1], ["x", 1], [""], [[1]]),
    *({}, {"1": 1}, {"a": "b"}, {"1": None}),
]
FEW: list[Any] = [3, ["x"]]
EDGES: dict[str, list[Any]] = {
    "max_tokens": [251, 252, 256, 257],
    "max_completion_tokens": [251, 252, 256, 257],
    "min_tokens": [3, 4, 256, 257],
    "n": [16, 17],
    "temperature": [2, 2.0, 2.0001, -0.0001, 1e308],
    "top_p": [1e-9, 1, 1.0001],
    "top_k": [-2, 300, (1 << 31) - 1, 1 << 31],
    "min_p": [1, 1.0001, -0.0001],
    "presence_penalty": [-2, 2, -2.01, 2.01],
    "frequency_penalty": [-2, 2, -2.01, 2.01],
    "repetition_penalty": [0.01, 0.0099, 100, 100.1],
    "stop": ["x" * 1000, "x" * 1001, ["x"] * 16, ["x"] * 17, [1] * 17, ["x", "x"]],
    "stop_token_ids": [[299], [300], [1] * 64, [1] * 65, [1.0], [HUGE], ["1", 300]],
    "seed": [-(1 << 63), (1 << 63) - 1, 1 << 63, -(1 << 63) - 1],
    "logit_bias": [
        {"299": -100},
        {"300": 1},
        {"1": 100.1},
        {"1": 1, "01": 1},
        {"01": 1},
        {"x": "y"},
        {"1": "y", "x": 1},
        {"٣": 1},
        {str(id): 0.5 for id in range(300)},
        {f"{id:04}": 1 for id in range(300)},
        {str(10**11 + id): 1 for id in range(40)},
    ],
    "stream_options": [
        {"include_usage": True},
        {"include_usage": 1},
        {"other": None},
        {"include_obfuscation": True},
        {"include_usage": None, "other": 1},
        {"include_usage": "x", "other": 1},
        {"other": 1, "include_usage": "x"},
    ],
    "priority": [-(1 << 31), (1 << 31) - 1, 1 << 31, -(1 << 31) - 1],
    "cache_salt": ["x" * 256, "x" * 257],
    "model": ["tiny", "tiny ", "x" * 1025],
    "metadata": [
        {str(index): "x" for index in range(16)},
        {str(index): "x" for index in range(17)},
        {str(index): 1 for index in range(17)},
        {"k" * 64: "v" * 512},
        {"k" * 65: "v"},
        {"k": "v" * 513},
        {"k" * 65: 1},
        {"k": 1, "k" * 65: "v"},
        {"k": None},
    ],
    "user": ["x" * 1024, "x" * 1025],
    "top_logprobs": [20, 21],
    "logprobs": [20, 21],
    "prompt": [
        *(["a", "b"], ["a", ""], [""], [[1], [2, 3]], [[1], []], [[]], [299], [300], [0]),
        *([1, True], [1, "a"], ["a", 1], [[1], "a"], [[1], 1], [[[1]]], [None], [[None]]),
        *(["a"] * 64, ["a"] * 65, [[1]] * 65, [1] * 300, [1.5], [1, 1.5], [[1, 300]], [HUGE]),
        *({"a": 1}, 1.5, "x" * 300, "\x00", "\U0001f600", ["a", None], [None, "a"], [{}]),
    ],
}
CONTENTS: list[Any] = [
    *("", "x", None, 1, True, {}, [], ["x"], [None], [1], [{}], [[]]),
    [{"type": "text"}],
    [{"text": "x"}],
    [{"type": "text", "text": ""}],
    [{"type": "text", "text": None}],
    [{"type": None, "text": "x"}],
    [{"type": "image_url", "image_url": {}}],
    [{"type": "refusal", "refusal": "no"}],
    [{"type": "smell", "text": "x"}],
    [{"type": 1, "text": 1}],
    [{"type": "text", "text": 1}, {"type": "text"}],
    [{"text": 1, "type": "text"}],
    [{"type": "text", "text": "x", "other": 1}],
    [{"type": "text", "text": "x", "other": None}],
    [{"other": 1, "type": "smell"}],
    [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
    [{"type": "text", "text": "x", "cache_control": "x"}],
    [{"type": "text", "text": "x", "annotations": [1] * 65}],
    [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    [{"type": "text", "text": "a"}, "b"],
    [{"type": "text", "text": "a"}, {"type": "input_audio"}],
]
MESSAGE_VALUES: list[Any] = [None, True, 1, "", "x", [], ["x"], {}, {"a": 1}]
MESSAGE_NAMES = (
    *("name", "id", "status", "annotations", "cache_control", "tool_calls", "tool_call_id"),
    *("function_call", "audio", "refusal", "reasoning_content", "reasoning", "mood", "Role"),
)
LISTS_OF_MESSAGES: list[Any] = [
    *([HELLO] * 3, [HELLO, None], [HELLO, {}], [HELLO, "x"], [1], [[]], [{}], [{"role": "user"}]),
    [{"content": "x"}],
    [{"role": None, "content": "x"}],
    [{"role": "user", "content": 1, "mood": 1}],
    [{"mood": 1, "role": "user", "content": 1}],
    [{"role": "wizard", "content": 1}],
    [{"content": 1, "role": "wizard"}],
    [{"role": "user", "content": None, "name": 1}],
    [{"role": 1, "content": "x"}, {"role": "user", "content": 1}],
    [HELLO, {"role": "assistant"}, HELLO],
    [HELLO, {"role": "assistant", "content": None, "tool_calls": [{}]}, HELLO],
    [{"role": "assistant", "content": [], "refusal": "no"}],
    [{"role": "developer", "content": "x"}, HELLO],
]


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


def bodies() -> Iterator[tuple[str, bytes]]:
    """(path, body) of each, without doubles."""
    seen: set[tuple[str, bytes]] = set()
    for path, body in _all():
        content = body if isinstance(body, bytes) else compact(body).encode()
        if len(content) <= MAX_BYTES and (path, content) not in seen:
            seen.add((path, content))
            yield path, content


def _all() -> Iterator[tuple[str, Any]]:
    for case in cases(FACTS):
        if case.method == "POST" and case.path in BOTH and len(case.headers) == 1:
            yield from ((path, case.body) for path in BOTH)
    for path in BOTH:
        yield path, {}
        yield path, {REQUIRED[path]: BASE[path][REQUIRED[path]]}
        for changes in _changes(path):
            yield path, {**BASE[path], **changes}
    for routes, changes, _, _ in REFUSED:
        yield from ((path, {**BASE[path], **changes}) for path in routes)
    for routes, changes in PROGRAMS:
        for path in routes:
            yield path, {REQUIRED[path]: BASE[path][REQUIRED[path]], **changes}
    yield from ((CHAT, {**BASE[CHAT], "messages": one}) for one in _conversations())
    yield from _several_faults()


def _changes(path: str) -> Iterator[dict[str, Any]]:
    served = {*SERVED, REQUIRED[path], "logprobs", "top_logprobs", "metadata", "user", "echo"}
    for name, nothing in NOTHING[path].items():
        for value in (*nothing, *(ANYTHING if name in served else FEW), *EDGES.get(name, ())):
            yield {name: value}
    for name in NOTHING[COMPLETIONS].keys() ^ NOTHING[CHAT].keys():
        for value in (
            None,
            *FEW,
            *NOTHING[COMPLETIONS].get(name, ()),
            *NOTHING[CHAT].get(name, ()),
        ):
            yield {name: value}
    for name in LABELS:
        yield from ({name: value} for value in (True, 1, "", "x", [], {}, "x" * 1024, "x" * 1025))
    for options in EDGES["stream_options"]:
        yield {"stream": True, "stream_options": options}
    yield from (
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"max_tokens": 3, "max_completion_tokens": 4},
        {"max_tokens": None, "max_completion_tokens": 4, "min_tokens": 5},
        {"max_tokens": None, "min_tokens": 256},
        {"logprobs": True, "top_logprobs": 5},
        {"logprobs": False, "top_logprobs": 5},
        {"logprobs": None, "top_logprobs": 0},
        {"n": 16, "prompt": ["a"] * 17},
        {"stream": False, "stream_options": {"include_usage": True}},
        {"stream": True, "usage_details": True},
        {"unknown": None},
        {"unknown": 1},
        {"": 1},
        {"x" * 300: 1},
        {"Model": "tiny"},
    )


def _conversations() -> Iterator[Any]:
    yield from LISTS_OF_MESSAGES
    for role in ("user", "assistant", "system", "developer", "tool", "function", "User", ""):
        yield from ([{"role": role, "content": content}] for content in CONTENTS)
    for role in ("user", "assistant"):
        for name in MESSAGE_NAMES:
            yield from ([{**HELLO, "role": role, name: value}] for value in MESSAGE_VALUES)
    yield from ([{**HELLO, **keys}] for keys in MESSAGE_KEYS)
    yield from ([message] for message, _, _, _ in REFUSED_MESSAGES)
    yield [{**HELLO, "id": "x" * 256}]
    yield [{**HELLO, "status": "x" * 65}]
    yield [{**HELLO, "cache_control": {str(index): 1 for index in range(9)}}]


def _several_faults() -> Iterator[tuple[str, Any]]:
    """Bodies with more than one fault: which of them is told depends on their order."""
    draw = random.Random(13)
    for path in BOTH:
        names = [*NOTHING[path], "unknown", *NOTHING[BOTH[path == COMPLETIONS]]]
        for _ in range(250):
            chosen = draw.sample(names, draw.choice((2, 2, 3, 4)))
            fields = [(name, draw.choice((*ANYTHING, *EDGES.get(name, ())))) for name in chosen]
            fields += [pair for pair in BASE[path].items() if pair[0] not in chosen]
            draw.shuffle(fields)
            yield path, dict(fields)


async def answers(asked: list[tuple[str, bytes]]) -> list[tuple[Recorded, httpx.Response]]:
    app = create_app(make_state(FakeEngine()))
    found = []
    async with app.router.lifespan_context(app), client_of(app) as client:
        for path, body in asked:
            headers = {"content-type": "application/json"}
            response = await client.post(path, content=body, headers=headers)
            error = response.json()["error"] if response.status_code != 200 else {}
            recorded = Recorded(
                path, body, response.status_code, error.get("code"), error.get("param")
            )
            found.append((recorded, response))
    return found


def main() -> None:
    found = asyncio.run(answers(list(bodies())))
    FILE.write_text("".join(recorded.line() + "\n" for recorded, _ in found))
    if sys.argv[1:]:  # for a look at what changed in words
        Path(sys.argv[1]).write_text(
            "".join(
                json.dumps([one.line(), response.json().get("error") if one.code else None]) + "\n"
                for one, response in found
            )
        )


if __name__ == "__main__":
    main()

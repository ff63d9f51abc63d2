"""Bodies that are made to keep the server busy: refused for little, and never on the event loop."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest

from server.api.routes import preparation
from server.api.state import HttpLimits, ModelCard
from server.text import template_process
from tests.api.api_client import with_client
from tests.api.api_fakes import FakeEngine, make_state
from tests.soak.heavy_bodies import BODIES, many_messages

MIB = 1024 * 1024
LIMITS = HttpLimits(max_body_bytes=4 * MIB)
CARD = ModelCard("tiny", 1, vocab_size=300, max_model_len=300_000, kv_capacity_tokens=10**6)


class Watched:
    """What was parsed and counted: by which thread, and how much."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parsed: list[tuple[bool, int]] = []
        self.counted: list[tuple[bool, int]] = []
        self.values: list[int] = []
        parse, measure = preparation.parse_object, preparation.measure

        def watched_parse(body: bytes) -> Any:
            self.parsed.append((self._on_loop(), len(body)))
            return parse(body)

        def watched_measure(body: bytes, limits: Any) -> Any:
            self.counted.append((self._on_loop(), len(body)))
            shape = measure(body, limits)
            self.values.append(shape.values)
            return shape

        monkeypatch.setattr(preparation, "parse_object", watched_parse)
        monkeypatch.setattr(preparation, "measure", watched_measure)

    def _on_loop(self) -> bool:
        return threading.current_thread() is threading.main_thread()


def post(state: Any, body: bytes, path: str = "/v1/completions") -> httpx.Response:
    headers = {"content-type": "application/json"}
    return with_client(state, lambda client: client.post(path, content=body, headers=headers))


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_counted_before_it_is_parsed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 4 MiB. Nothing of more than the stated values reaches the parser."""
    watched = Watched(monkeypatch)
    body = BODIES[name](4 * MIB)
    assert 3.9 * MIB < len(body) <= 4 * MIB
    state = make_state(limits=LIMITS)
    response = post(state, body)
    assert response.status_code == 400, response.text
    assert all(
        values <= LIMITS.max_json_values + LIMITS.max_prompt_ids for values in watched.values
    )
    assert len(watched.parsed) == len(watched.values)
    on_loop = [size for is_on, size in watched.parsed + watched.counted if is_on]
    assert not on_loop
    assert state.budget.used == dict.fromkeys(state.budget.used, 0)


REFUSED_UNPARSED = ("lists", "objects", "lists of one", "nested", "numbers", "empty strings")


@pytest.mark.parametrize("name", REFUSED_UNPARSED)
def test_too_many_values_are_refused_before_one_is_made(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    error = post(make_state(limits=LIMITS), BODIES[name](4 * MIB)).json()["error"]
    assert error["code"] == "invalid_request"
    assert not watched.parsed


def test_a_hundred_thousand_messages_are_refused_before_one_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    body = many_messages(100_000)
    error = post(make_state(limits=LIMITS), body, "/v1/chat/completions").json()["error"]
    assert "more than 65536 JSON values" in error["message"]
    assert not watched.parsed


def test_a_turn_of_the_loop_parses_small_bodies_only(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    state = make_state(limits=LIMITS, model=CARD)
    for length in (10, preparation.SMALL - 200, preparation.SMALL, 100_000):
        body = json.dumps({"prompt": "a" * length, "max_tokens": 1}).encode()
        assert post(state, body).status_code == 200
    on_loop = [is_on for is_on, _ in watched.parsed]
    assert on_loop == [True, True, False, False]
    assert all(size < preparation.SMALL for is_on, size in watched.counted if is_on)


def test_as_many_token_ids_as_the_queue_holds_are_served() -> None:
    engine = FakeEngine()
    state = make_state(engine, limits=LIMITS, model=CARD)
    body = json.dumps({"prompt": [7] * LIMITS.max_prompt_ids, "max_tokens": 1}).encode()
    assert post(state, body).status_code == 200
    assert len(engine.seen[0].prompt_token_ids) == LIMITS.max_prompt_ids


def test_the_most_messages_of_several_parts_are_served() -> None:
    parts = [{"type": "text", "text": "a"}] * 3
    body = json.dumps({"messages": [{"role": "user", "content": parts}] * 4096, "max_tokens": 1})
    response = post(make_state(model=CARD), body.encode(), "/v1/chat/completions")
    assert response.status_code == 200, response.text


def test_a_large_chat_is_written_and_read_as_json_off_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On its way to the template's worker and back."""
    seen: list[tuple[bool, int]] = []
    dumps, loads = json.dumps, json.loads

    def note(size: int) -> None:
        seen.append((threading.current_thread() is threading.main_thread(), size))

    def watched_dumps(value: Any, **options: Any) -> str:
        text = dumps(value, **options)
        note(len(text))
        return text

    def watched_loads(text: Any, **options: Any) -> Any:
        note(len(text))
        return loads(text, **options)

    body = json.dumps({"messages": [{"role": "user", "content": "ab" * 200_000}]}).encode()
    monkeypatch.setattr(template_process.json, "dumps", watched_dumps)
    monkeypatch.setattr(template_process.json, "loads", watched_loads)
    assert post(make_state(limits=LIMITS), body, "/v1/chat/completions").status_code == 400
    assert sum(size > 300_000 for _, size in seen) >= 3  # parsed, sent, received
    assert all(size < 300_000 for on_loop, size in seen if on_loop)

"""/v1/chat/completions and the routes that only report."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.api.state import ApiState
from server.text.chat_template import ChatTemplate
from tests.api.api_client import chunks, openai_client, started
from tests.api.api_fakes import FakeEngine, FakeHealth, make_state, saying

MESSAGES: list[Any] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "深"}, {"type": "text", "text": "度"}]},
]


def request(state: ApiState, method: str, path: str, **options: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with started(state) as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


def chat(state: ApiState, **changes: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": MESSAGES, "temperature": 0, **changes}
    return request(state, "POST", "/v1/chat/completions", json=body)


def test_the_answer_is_complete_and_the_template_is_the_models() -> None:
    engine = FakeEngine(saying("学习是"))
    answer = chat(make_state(engine), logprobs=True, top_logprobs=1).json()
    prompt = "system: Be brief.\nuser: 深\n度\nassistant:"
    assert bytes(engine.seen[0].prompt_token_ids).decode() == prompt
    assert engine.seen[0].sampling.max_tokens == 256 - len(prompt.encode())
    assert answer.pop("id").startswith("chatcmpl-")
    del answer["created"]
    logprobs = answer["choices"][0].pop("logprobs")
    assert answer == {
        "object": "chat.completion",
        "model": "tiny",
        "system_fingerprint": "quire",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "学习是", "refusal": None},
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt.encode()),
            "completion_tokens": 10,
            "total_tokens": len(prompt.encode()) + 10,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert len(logprobs["content"]) == 10
    assert logprobs["content"][0] == {
        "token": "\ufffd",
        "logprob": pytest.approx(-2.29),
        "bytes": [0xE5],
        "top_logprobs": [{"token": "\ufffd", "logprob": pytest.approx(-2.29), "bytes": [0xE5]}],
    }


def test_a_stream_begins_with_the_role_and_ends_with_the_reason() -> None:
    response = chat(
        make_state(FakeEngine(saying("学习"))),
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    *told, usage = chunks(response)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 14
    assert {chunk["object"] for chunk in (*told, usage)} == {"chat.completion.chunk"}
    for index in range(2):
        mine = [c["choices"][0] for c in told if c["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert "".join(part["delta"].get("content", "") for part in mine) == "学习"
        assert [part["finish_reason"] for part in mine][-2:] == [None, "stop"]
        assert mine[-1]["delta"] == {}


async def test_the_official_client_reads_it_streamed_and_not() -> None:
    async with started(make_state(FakeEngine(saying("深度学习是")))) as http:
        client = openai_client(http)
        whole = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_completion_tokens=50, logprobs=True
        )
        assert whole.choices[0].message.content == "深度学习是"
        stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(parts) == "深度学习是"
        assert [model.id async for model in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).max_model_len == 256  # type: ignore[attr-defined]


def test_a_model_without_a_template_says_so() -> None:
    response = chat(make_state(chat_template=None))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "no_chat_template"


def test_a_template_that_cannot_be_used_refuses_chats_alone_and_says_why() -> None:
    def state() -> ApiState:
        problem = "it is not UTF-8 (byte 7)"
        return make_state(chat_template=ChatTemplate("", file="/m/own.jinja", unusable=problem))

    refused = chat(state())
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "no_chat_template"
    assert "own.jinja: it is not UTF-8 (byte 7). " in refused.json()["error"]["message"]
    assert request(state(), "GET", "/v1/models").json()["data"][0]["chat"] is False
    completion = {"prompt": "hello", "max_tokens": 1}
    assert request(state(), "POST", "/v1/completions", json=completion).status_code == 200


def test_a_template_that_refuses_or_fails() -> None:
    refusing = ChatTemplate("{{ raise_exception('system first') }}")
    response = chat(make_state(chat_template=refusing))
    assert response.status_code == 400
    assert "system first" in response.json()["error"]["message"]
    assert chat(make_state(chat_template=ChatTemplate("{% if %}"))).status_code == 500


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/metrics", "/memory"])
def test_the_reports_answer(path: str) -> None:
    assert request(make_state(), "GET", path).status_code == 200
    head = request(make_state(), "HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    if path != "/version":
        assert head.headers["cache-control"] == "no-store"


def test_what_the_reports_say() -> None:
    state = make_state()
    assert request(state, "GET", "/memory").json() == {"total_bytes": 1}
    assert request(state, "GET", "/memory?format=text").text == "total 1\n"
    assert request(state, "GET", "/metrics").text == "quire_up 1\n"
    assert request(state, "GET", "/version").json() == {"version": "0.1.0"}
    card = {"id": "tiny", "object": "model", "created": 1, "owned_by": "quire"}
    assert request(state, "GET", "/v1/models/tiny").json().items() >= card.items()


@pytest.mark.parametrize(
    ("health", "alive", "ready", "code"),
    [
        (FakeHealth(), 200, 200, None),
        (FakeHealth(ready=False), 200, 503, "engine_unavailable"),
        (FakeHealth(alive=False), 503, 503, "engine_unavailable"),
        (FakeHealth(draining=True), 200, 503, "shutting_down"),
    ],
)
def test_health_and_readiness(health: FakeHealth, alive: int, ready: int, code: str | None) -> None:
    state = make_state(health=health)
    assert request(state, "GET", "/health").status_code == alive
    response = request(state, "GET", "/ready")
    assert response.status_code == ready
    if code is not None:
        assert response.json()["error"]["code"] == code


@pytest.mark.parametrize("path", ["/ready", "/v1/chat/completions"])
def test_a_503_while_the_model_loads_says_so(path: str) -> None:
    state = make_state(health=FakeHealth(ready=False, loading=True))
    response = chat(state) if path != "/ready" else request(state, "GET", path)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    error = response.json()["error"]
    assert error["code"] == "engine_unavailable"
    assert "still loading" in error["message"]
    assert request(state, "GET", "/health").status_code == 200


def test_http_is_counted_by_route_template() -> None:
    state = make_state()
    for path in ("/health", "/v1/models/tiny", "/v1/models/no", "/wp-admin.php"):
        request(state, "GET", path)
    request(state, "BREW", "/health")
    assert state.metrics.http == [  # type: ignore[attr-defined]
        ("/health", "GET", 200),
        ("/v1/models/{model}", "GET", 200),
        ("/v1/models/{model}", "GET", 404),
        ("unmatched", "GET", 404),
        ("/health", "OTHER", 405),
    ]


def test_two_applications_share_nothing() -> None:
    first, second = make_state(), make_state()
    second = replace(second, model=replace(second.model, name="other"))
    assert chat(second).status_code == 404
    assert chat(first, max_tokens=1).status_code == 200

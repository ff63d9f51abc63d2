"""Bad chats: messages of every bad form, and fields that a chat may not have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.api.bad_case import CHAT, BadRequest, ServerFacts, chat


def _bad_chat(
    facts: ServerFacts, label: str, code: str | None = None, **changes: Any
) -> BadRequest:
    return BadRequest(
        f"chat {label}", json.dumps(chat(facts, **changes)).encode(), 400, code, path=CHAT
    )


def bad_messages(facts: ServerFacts) -> Iterator[BadRequest]:
    for label, messages in (
        ("not a list", "hello"),
        ("an object", {}),
        ("a number", 1),
        ("empty", []),
        ("of strings", ["hello"]),
        ("of null", [None]),
        ("without role", [{"content": "a"}]),
        ("without content", [{"role": "user"}]),
        ("null content", [{"role": "user", "content": None}]),
        ("unknown role", [{"role": "wizard", "content": "a"}]),
        ("role of a number", [{"role": 1, "content": "a"}]),
        ("content of a number", [{"role": "user", "content": 1}]),
        ("content of an object", [{"role": "user", "content": {}}]),
        ("content of no parts", [{"role": "user", "content": []}]),
        ("part of text alone", [{"role": "user", "content": ["a"]}]),
        ("part without type", [{"role": "user", "content": [{"text": "a"}]}]),
        ("part without text", [{"role": "user", "content": [{"type": "text"}]}]),
        ("part with numeric text", [{"role": "user", "content": [{"type": "text", "text": 1}]}]),
        (
            "part with a stray field",
            [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}],
        ),
        ("part of unknown type", [{"role": "user", "content": [{"type": "smell"}]}]),
        ("part type a list", [{"role": "user", "content": [{"type": []}]}]),
        ("stray field", [{"role": "user", "content": "a", "mood": "good"}]),
        ("name of a number", [{"role": "user", "content": "a", "name": 1}]),
        ("enormous list", [{"role": "user", "content": "a"}] * 10_000),
        ("enormous text", [{"role": "user", "content": "a " * 100_000}]),
    ):
        yield _bad_chat(facts, f"messages {label}", messages=messages)
    for label, messages in (
        ("image", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("audio", [{"role": "user", "content": [{"type": "input_audio"}]}]),
        ("tool role", [{"role": "tool", "content": "a"}]),
        ("tool calls", [{"role": "assistant", "content": "a", "tool_calls": [{}]}]),
    ):
        yield _bad_chat(facts, f"messages {label}", "unsupported_parameter", messages=messages)
    yield _bad_chat(facts, "messages null", "missing_required_parameter", messages=None)


def bad_chat_fields(facts: ServerFacts) -> Iterator[BadRequest]:
    for name, value in (
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("audio", {"voice": "a"}),
        ("modalities", ["text", "audio"]),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("chat_template", "{{ 1 }}"),
        ("chat_template_kwargs", {"enable_thinking": True}),
        ("prediction", {"type": "content"}),
        ("echo", True),
        ("prompt", "a"),
        ("reasoning_effort", "low"),
        ("continue_final_message", True),
    ):
        label = f"{name} {json.dumps(value)[:40]}"
        yield _bad_chat(facts, label, "unsupported_parameter", **{name: value})
    for name, value, code in (
        ("logprobs", 1, "invalid_type"),
        ("top_logprobs", 1, "invalid_value"),
        ("max_completion_tokens", "1", "invalid_type"),
        ("max_completion_tokens", 2, "invalid_value"),
        ("temperature", -1, "invalid_value"),
        ("n", 0, "invalid_value"),
        ("stop", [""], "invalid_value"),
        ("nonsense", 1, "unknown_parameter"),
    ):
        yield _bad_chat(facts, f"{name} {value!r}", code, **{name: value})
    for value, code in ((21, "invalid_value"), (-1, "invalid_value"), (True, "invalid_type")):
        yield _bad_chat(facts, f"top_logprobs {value}", code, logprobs=True, top_logprobs=value)
    yield BadRequest(
        "chat model unknown",
        json.dumps(chat(facts, model="no-such-model")).encode(),
        404,
        "model_not_found",
        path=CHAT,
    )

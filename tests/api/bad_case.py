"""One bad request as data, and the good ones that each is a change of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class ServerFacts:
    model: str
    vocab_size: int
    max_model_len: int
    max_body_bytes: int
    max_n: int = 16
    max_logprobs: int = 20


@dataclass(frozen=True)
class BadRequest:
    """``body`` goes out as it is. ``code`` None accepts any code of the status."""

    name: str
    body: bytes
    status: int = 400
    code: str | None = None
    param: str | None = None
    path: str = COMPLETIONS
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


def completion(facts: ServerFacts, **changes: Any) -> dict[str, Any]:
    return {"model": facts.model, "prompt": "a", "max_tokens": 1, **changes}


def chat(facts: ServerFacts, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "a"}]
    return {"model": facts.model, "messages": messages, "max_tokens": 1, **changes}


def with_member(facts: ServerFacts, raw: str) -> bytes:
    """A completion body with one more member, spelled by hand."""
    return json.dumps(completion(facts))[:-1].encode() + b", " + raw.encode() + b"}"

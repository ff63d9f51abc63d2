"""What every recorded body is answered is what it was answered when it was recorded."""

from __future__ import annotations

import httpx
from pydantic import BaseModel

from server.api.schema.answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ErrorAnswer,
)
from tests.api.api_client import chunks
from tests.api.asks_for_nothing import CHAT, COMPLETIONS
from tests.api.recorded_bodies import Recorded, answers, recorded

MODELS: dict[str, tuple[type[BaseModel], type[BaseModel]]] = {
    COMPLETIONS: (Completion, CompletionChunk),
    CHAT: (ChatCompletion, ChatCompletionChunk),
}
RECORDED = recorded()


def test_the_record_is_large_and_of_every_kind() -> None:
    assert len(RECORDED) >= 3000
    assert len({one.path for one in RECORDED}) == 2
    assert sum(one.status == 200 for one in RECORDED) >= 500
    codes = {one.code for one in RECORDED}
    assert codes >= {
        "invalid_type",
        "invalid_value",
        "invalid_request",
        "unknown_parameter",
        "unsupported_parameter",
        "missing_required_parameter",
        "model_not_found",
        "context_length_exceeded",
    }


async def test_status_code_and_field_are_those_of_the_record() -> None:
    found = await answers(RECORDED)
    differ = [
        f"{response.text} was {before.line()}"
        for before, (now, response) in zip(RECORDED, found, strict=True)
        if now != before
    ]
    assert not differ, f"{len(differ)} differ:\n" + "\n".join(differ[:20])
    for now, response in found:
        hold_to_its_model(now, response)


def hold_to_its_model(recorded: Recorded, response: httpx.Response) -> None:
    """An answer is what the OpenAPI document says of it."""
    whole, chunk = MODELS[recorded.path]
    if recorded.code is not None:
        ErrorAnswer.model_validate_json(response.content)
    elif response.headers["content-type"] == "application/json":
        whole.model_validate_json(response.content)
    else:
        for data in chunks(response):
            chunk.model_validate(data)

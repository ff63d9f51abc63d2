"""Answers of a real server: the same alone, in a crowd, streamed, and cut by stop strings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.server_process import ServerProcess, events, wait_until

if TYPE_CHECKING:
    import openai

CONCURRENCY = 32
PROMPT = "深度学习是"
UTF8_BYTES = [3 + byte for byte in (*range(0x80, 0xC0), *range(0xE4, 0xEA))]


def client_of(server: ServerProcess) -> openai.AsyncOpenAI:
    import openai

    return openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)


def crowd_request(index: int) -> dict[str, Any]:
    """One of 32 different requests: greedy and seeded, long and short, one or two choices."""
    return {
        "prompt": f"{PROMPT} {index} " + "def f(x): " * (index % 7),
        "max_tokens": 3 + 2 * (index % 11),
        "temperature": 0 if index % 2 else 0.9,
        "seed": 1000 + index,
        "n": 1 + (index % 5 == 0),
        "top_p": 0.9,
        "presence_penalty": 0.5 * (index % 3),
    }


async def complete(client: openai.AsyncOpenAI, model: str, stream: bool, **body: Any) -> Any:
    """[(text, finish reason)] by choice."""
    if not stream:
        answer = await client.completions.create(model=model, **body, stream=False)
        return [(choice.text, choice.finish_reason) for choice in answer.choices]
    texts = [""] * body.get("n", 1)
    reasons: list[str | None] = [None] * len(texts)
    async for chunk in await client.completions.create(model=model, **body, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    return list(zip(texts, reasons, strict=True))


async def test_a_crowd_of_32_gets_what_each_gets_alone(server: ServerProcess) -> None:
    async with client_of(server) as client:
        jobs = [
            complete(client, server.model, index % 3 == 0, **crowd_request(index))
            for index in range(CONCURRENCY)
        ]
        crowd = await asyncio.gather(*jobs)
        for index, together in enumerate(crowd):
            body = crowd_request(index)
            alone = await complete(client, server.model, index % 3 != 0, **body)
            assert together == alone, f"request {index}"
    assert server.metric("quire_prefix_cache_hits_total") > 0
    wait_until(server.is_idle, 60, "all blocks free")


def test_multibyte_text_is_byte_exact_streamed_and_not(server: ServerProcess) -> None:
    body = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "echo": True, "logprobs": 1}
    whole = server.post(**body).json()["choices"][0]
    assert whole["text"].startswith(PROMPT)
    streamed = events(server.post(**body, stream=True).text)
    choices = [chunk["choices"][0] for chunk in streamed]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    ids = whole["logprobs"]
    assert len(ids["tokens"]) == len(ids["token_logprobs"])
    assert ids["token_logprobs"][0] is None
    assert ids["text_offset"] == sorted(ids["text_offset"])


def multibyte_answer(server: ServerProcess) -> tuple[dict[str, Any], str]:
    """A request whose answer, on this random model, has three-byte characters in it."""
    bias = {str(id): 40 for id in UTF8_BYTES}
    for seed in range(40):
        body = {
            "prompt": PROMPT, "max_tokens": 60, "temperature": 1.5, "seed": seed,
            "logit_bias": bias,
        }  # fmt: skip
        text = server.post(**body).json()["choices"][0]["text"]
        if sum(ord(character) > 0x800 and character != "\ufffd" for character in text) >= 3:
            return body, text
    raise AssertionError("no seed gave multi-byte text")


def test_stop_strings_inside_multibyte_text(server: ServerProcess) -> None:
    body, text = multibyte_answer(server)
    wide = [i for i, one in enumerate(text) if ord(one) > 0x800 and one != "\ufffd"]
    stops = {text[i] for i in wide[:2]} | {text[i : i + 2] for i in wide[1:3]} | {text[-2:]}
    for stop in sorted(stops):
        whole = server.post(**body, stop=[stop]).json()
        (choice,) = whole["choices"]
        assert choice["text"] == text[: text.index(stop)]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, usage = events(server.post(**body, stop=[stop], **options).text)
        pieces = [chunk["choices"][0] for chunk in chunks]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert (pieces[-1]["finish_reason"], pieces[-1]["stop_reason"]) == ("stop", stop)
        assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    wait_until(server.is_idle, 60, "all blocks free")


async def test_chat_streamed_is_the_same_as_whole(server: ServerProcess) -> None:
    messages: Any = [{"role": "user", "content": PROMPT}]

    async with client_of(server) as client:
        body: dict[str, Any] = {
            "model": server.model, "messages": messages, "max_tokens": 20, "temperature": 0,
            "logprobs": True, "top_logprobs": 3,
        }  # fmt: skip
        whole = await client.chat.completions.create(**body)
        text, tokens = "", []
        async for chunk in await client.chat.completions.create(**body, stream=True):
            text += chunk.choices[0].delta.content or ""
            logprobs = chunk.choices[0].logprobs
            tokens += logprobs.content or [] if logprobs else []
        assert text == whole.choices[0].message.content
        assert whole.choices[0].logprobs is not None
        assert tokens == whole.choices[0].logprobs.content
        assert len(tokens) == whole.usage.completion_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "prompts", [["import os", PROMPT, "a"], [[5, 6, 7], [8, 9, 10, 11]]], ids=["texts", "token ids"]
)
def test_several_prompts_score_as_each_alone(server: ServerProcess, prompts: list[Any]) -> None:
    scores = {"echo": True, "max_tokens": 0, "logprobs": 2}
    alone = [server.post(prompt=prompt, **scores).json()["choices"][0] for prompt in prompts]
    together = server.post(prompt=prompts, **scores).json()["choices"]
    for one, other in zip(alone, together, strict=True):
        tokens = one["logprobs"]["tokens"]
        assert tokens == other["logprobs"]["tokens"]
        assert len(tokens) == len(one["logprobs"]["token_logprobs"]) > 0
        for a, b in zip(
            one["logprobs"]["token_logprobs"][1:],
            other["logprobs"]["token_logprobs"][1:],
            strict=True,
        ):
            # Sums of some 17,000 terms: sqrt(17,000) x 2**-24 x logits of some 10, each way.
            assert abs(a - b) < 2e-4


def test_the_reports_are_there_and_the_books_close(server: ServerProcess) -> None:
    for path in ("/health", "/ready", "/version", "/metrics", "/memory", "/memory?format=text"):
        assert server.status(path) == 200, path
    (device,) = httpx.get(server.base_url + "/memory").json()["devices"]
    kinds = device["kinds"]
    assert sum(kind["bytes"] for kind in kinds.values()) == device["total_bytes"] > 0
    assert abs(kinds["unaccounted"]["bytes"]) < max(8 * 2**20, 0.03 * device["resident_bytes"])
    weights = kinds["weights"]
    assert sum(part["bytes"] for part in weights["parts"]) == weights["bytes"]
    assert weights["bytes"] == weights["planned_bytes"]
    assert "unaccounted" in httpx.get(server.base_url + "/memory?format=text").text

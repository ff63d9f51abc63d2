"""Texts that are long in characters and short in tokens, and texts that are just long."""

from __future__ import annotations

import httpx
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from server.api.routes import preparation
from server.text.tokenizer import Tokenizer
from tests.api.api_client import with_client
from tests.api.api_fakes import FakeEngine, make_state

PIECES = {"[UNK]": 0, "hello": 1, "a": 2}


def words() -> Tokenizer:
    """A word that is not known is one token, and spaces are none."""
    backend = tokenizers.Tokenizer(models.WordPiece(PIECES, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, vocab_size=300)


def post(engine: FakeEngine, prompt: str) -> httpx.Response:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 2}
    state = make_state(engine, tokenizer=words())
    return with_client(state, lambda client: client.post("/v1/completions", json=body))


def test_a_text_of_many_characters_and_few_tokens_is_served() -> None:
    engine = FakeEngine()
    assert post(engine, "hello" + " " * 9000 + "x" * 9000).status_code == 200
    (request,) = engine.seen
    assert request.prompt_token_ids == (1, 0)


def test_a_text_that_length_tells_nothing_of_has_a_most_of_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preparation, "UNCOUNTED_TEXT_BYTES", 8192)
    engine = FakeEngine()
    assert post(engine, "é" * 4096).status_code == 200
    answer = post(engine, "é" * 4096 + "a")
    assert answer.status_code == 400
    assert "this text has more than 8192 bytes" in answer.json()["error"]["message"]
    assert len(engine.seen) == 1

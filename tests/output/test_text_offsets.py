"""text_offset: each token that has text stands where it says, in prompts, answers and streams."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.events import ChoiceOutput, PromptOutput
from server.engine.request import EngineRequest, FinishReason, SamplingParams
from server.engine.step_plan import LogprobArrays
from server.output.choice import Delta
from server.output.logprobs import completion_logprobs
from server.output.processor import OutputOptions, OutputProcessor
from server.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import ALL_KINDS, byte_fallback, byte_level

TOKENIZERS = {name: Tokenizer(make()) for name, make in ALL_KINDS.items()}
LEVEL, FALLBACK = Tokenizer(byte_level()), Tokenizer(byte_fallback())


def scored(ids: Sequence[int]) -> LogprobArrays:
    return LogprobArrays(
        len(ids), 1, array("i", ids).tobytes(), array("f", [-0.5] * len(ids)).tobytes()
    )


def answer(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    ids: Sequence[int],
    size: int = 1,
    stops: tuple[str, ...] = (),
) -> tuple[str, dict[str, Any], list[Delta]]:
    """The text of ``prompt`` echoed and ``ids`` generated, its log-probabilities, the deltas."""
    sampling = SamplingParams(seed=0, logprobs=0, prompt_logprobs=0 if prompt else None)
    request = EngineRequest("r", tuple(prompt or (0,)), sampling)
    one = OutputProcessor(tokenizer, request, OutputOptions(stops=stops, echo=bool(prompt)))
    if len(prompt) > 1:
        one.feed(PromptOutput("r", 0, 1, scored(prompt[1:])))
    deltas: list[Delta] = []
    for start in range(0, max(1, len(ids)), size):
        part = tuple(ids[start : start + size])
        end = FinishReason.LENGTH if start + size >= len(ids) else None
        delta = one.feed(ChoiceOutput("r", 0, part, scored(part) if part else None, end))
        deltas += [delta] if delta else []
    text = "".join(delta.text for delta in deltas)
    entries = [entry for delta in deltas for entry in delta.logprobs]
    return text, completion_logprobs(tokenizer, entries), deltas


def assert_tokens_stand_where_they_say(text: str, form: dict[str, Any], *, cut: bool) -> None:
    """``cut``: a stop string may have taken the last token's end."""
    offsets = form["text_offset"]
    assert offsets == sorted(offsets)
    assert offsets or not text
    ends = [*offsets[1:], len(text)][: len(offsets)]  # of no token where there is none
    for token, offset, following in zip(form["tokens"], offsets, ends, strict=True):
        if following == offset or token.startswith("bytes:"):
            continue  # no text of its own: special, or a part of a character
        found = text[offset : offset + len(token)]
        assert found == token or (cut and following == len(text) and token.startswith(found))


def test_a_newline_by_its_byte_moves_what_follows() -> None:
    newline = 3 + 0x0A
    first, word = (FALLBACK._backend.token_to_id(piece) for piece in ("a", "world"))
    text, form, _ = answer(FALLBACK, [newline, first], [word, first], 1)
    assert text == "\naworlda"
    assert form["tokens"] == ["\n", "a", "world", "a"]
    assert form["text_offset"] == [0, 1, 2, 7]


def test_a_character_begun_and_not_ended_moves_what_follows() -> None:
    text, form, _ = answer(LEVEL, list(b"a\xe6\xb7"), list(b"bc"))
    assert text == "a\ufffdbc"
    assert form["tokens"] == ["a", "bytes:\\xe6", "bytes:\\xb7", "b", "c"]
    assert form["text_offset"] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("character", ["é", "深", "😀"])
@pytest.mark.parametrize(("tokenizer", "first"), [(LEVEL, 0), (FALLBACK, 3)], ids=["level", "run"])
def test_a_character_of_several_tokens_is_of_the_last_of_them(
    tokenizer: Tokenizer, first: int, character: str
) -> None:
    a, *spelled, b = (first + byte for byte in f"a{character}b".encode())
    text, form, _ = answer(tokenizer, [], [a, *spelled, b])
    assert text == f"a{character}b"
    assert form["text_offset"] == [0, *(1 for _ in spelled), 2]


def test_a_run_of_bytes_that_is_no_text_is_named_by_its_bytes() -> None:
    ids = [3 + byte for byte in b"A\xffB"]
    word = FALLBACK._backend.token_to_id("world")
    text, form, _ = answer(FALLBACK, [], [*ids, word])
    assert text == "\ufffd\ufffd\ufffdworld"
    assert form["tokens"] == ["bytes:\\x41", "bytes:\\xff", "bytes:\\x42", "world"]
    assert form["text_offset"] == [0, 1, 2, 3]
    assert list(form["top_logprobs"][0]) == ["bytes:\\x41"]


def test_a_first_word_is_called_by_the_text_that_it_has() -> None:
    hello = FALLBACK._backend.token_to_id("▁hello")
    text, form, _ = answer(FALLBACK, [1, hello, hello], [hello])
    assert text == "hello hello hello"
    assert form["tokens"][1:] == ["hello", " hello", " hello"]
    assert form["text_offset"] == [0, 0, 5, 11]
    assert list(form["top_logprobs"][1]) == ["hello"]


def test_no_stop_string_is_found_in_an_echoed_prompt_whose_end_comes_late() -> None:
    newline, word = 3 + 0x0A, FALLBACK._backend.token_to_id("world")
    text, form, _ = answer(FALLBACK, [word, newline], [word, newline, word], 1, ("\n",))
    assert text == "world\nworld"
    assert form["text_offset"] == [0, 5, 6]


def test_a_token_s_score_comes_with_its_text() -> None:
    level = [*b"ab", *"深".encode(), *b"c"]
    heard = answer(LEVEL, [], level)[2]
    assert "".join(delta.text for delta in heard) == "ab深c"
    for delta in heard:
        assert bool(delta.text) == bool(delta.logprobs)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_token_with_text_stands_where_it_says(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    bytes_often = st.integers(0, tokenizer.vocab_size - 1) | st.sampled_from(
        [id for id in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(id)) == 1] or [0]
    )
    prompt = data.draw(st.lists(bytes_often, max_size=8))
    ids = data.draw(st.lists(bytes_often, min_size=0 if prompt else 1, max_size=10))
    stops = tuple(data.draw(st.lists(st.sampled_from(["a", "是.", "\n", " w"]), max_size=1)))
    size = data.draw(st.integers(1, 4))
    text, form, _ = answer(tokenizer, prompt, ids, size, stops)
    assert_tokens_stand_where_they_say(text, form, cut=bool(stops))
    whole, at_once, _ = answer(tokenizer, prompt, ids, max(1, len(ids)), stops)
    assert (text, form) == (whole, at_once)  # a stream's offsets go on where its last chunk ended
    if not stops:
        assert len(form["tokens"]) == len(prompt) + len(ids)
        begins = not prompt
        stream = tokenizer.stream(continuation=begins)
        pieces = [tokenizer.text_piece(id) for id in (*prompt, *ids)]
        said = "".join(stream.feed(piece) for piece in pieces if piece is not None)
        assert text == said + stream.flush()

"""Streaming equals decoding the whole, for every kind of tokenizer and any ids at all."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from server.text.decoding import decoder_stages
from server.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import ALL_KINDS, byte_fallback, byte_level, word_piece

TOKENIZERS = {name: Tokenizer(make()) for name, make in ALL_KINDS.items()}
FAMILY = "👩‍👩‍👧"  # seven code points joined by ZWJ


def deltas(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    pieces = [tokenizer.text_piece(id) for id in ids]
    return [*("" if piece is None else stream.feed(piece) for piece in pieces), stream.flush()]


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids that spell ``text`` byte by byte."""
    if tokenizer.piece(0) == "<unk>":
        return [3 + byte for byte in text.encode()]
    return list(text.encode())


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_concatenated_deltas_are_the_whole_text(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=24))
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@settings(max_examples=200, deadline=None)
@example(text="深度学习是", noise=[])
@example(text=FAMILY, noise=[])
@example(text="a" + FAMILY + "é", noise=[0x80, 0xE6])
@given(text=st.text(max_size=12), noise=st.lists(st.integers(0, 255), max_size=4))
def test_bytes_of_any_text_with_noise_in_them(kind: str, text: str, noise: list[int]) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = byte_ids(tokenizer, text)
    first = byte_ids(tokenizer, "\0")[0]
    for index, byte in enumerate(noise):
        ids.insert(index * 3 % (len(ids) + 1), first + byte)
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20))
def test_no_broken_character_while_the_text_is_whole(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    given_so_far = ""
    for delta in deltas(tokenizer, byte_ids(tokenizer, text)):
        given_so_far += delta
        assert text.startswith(given_so_far) or kind == "byte-fallback"
        assert ("\ufffd" in delta) <= ("\ufffd" in text)
    if kind == "byte-level":
        assert given_so_far == text


def test_a_character_comes_with_its_last_byte() -> None:
    ids = list("深é".encode())
    assert deltas(TOKENIZERS["byte-level"], ids) == ["", "", "深", "", "é", ""]


def test_a_run_of_fallback_bytes_comes_when_it_ends() -> None:
    tokenizer = TOKENIZERS["byte-fallback"]
    word = tokenizer._backend.token_to_id("▁hello")
    ids = [*byte_ids(tokenizer, "深"), word]
    assert deltas(tokenizer, ids) == ["", "", "", "深 hello", ""]


def test_what_is_held_at_the_end_goes_through_the_later_stages() -> None:
    tokenizer = TOKENIZERS["byte-fallback"]
    ids = byte_ids(tokenizer, " A")
    assert deltas(tokenizer, ids) == ["", "", "A"] and tokenizer.decode(ids) == "A"


def test_an_invalid_byte_is_replaced_at_once_and_what_is_cut_off_at_the_end() -> None:
    assert deltas(TOKENIZERS["byte-level"], [0xFF, 0x41, 0xE6, 0xB7]) == [
        "\ufffd",
        "A",
        "",
        "",
        "\ufffd",
    ]


def test_special_tokens_and_padding_have_no_text() -> None:
    tokenizer = Tokenizer(byte_level(), vocab_size=1000)
    (special,) = tokenizer.special_ids
    assert "".join(deltas(tokenizer, [65, special, 66, 999])) == "AB"


@pytest.mark.parametrize(
    ("make", "piece", "alone", "continued"),
    [(byte_fallback, "▁hello", "hello", " hello"), (word_piece, "hello", "hello", " hello")],
)
def test_a_continuation_keeps_the_space_that_a_beginning_drops(
    make: object, piece: str, alone: str, continued: str
) -> None:
    tokenizer = Tokenizer(make())  # type: ignore[operator]
    assert tokenizer.stream().feed(piece) == alone
    assert tokenizer.stream(continuation=True).feed(piece) == continued


def test_a_long_held_run_costs_as_much_a_token_as_a_short_one() -> None:
    tokenizer = TOKENIZERS["byte-fallback"]

    def processor_seconds(count: int) -> float:
        stream, started = tokenizer.stream(), time.thread_time()
        for _ in range(count):
            stream.feed("<0x80>")
        return time.thread_time() - started

    processor_seconds(1000)
    assert processor_seconds(40_000) < 20 * processor_seconds(10_000) + 0.05


def test_a_decoder_that_cannot_be_streamed_is_refused_by_name() -> None:
    for decoder in (decoders.CTC(), decoders.Sequence([decoders.Fuse(), decoders.Metaspace()])):
        backend = byte_level()
        backend.decoder = decoder
        with pytest.raises(ValueError, match=r"CTC|Metaspace"):
            Tokenizer(backend)
    assert decoder_stages(None)

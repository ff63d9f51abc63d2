"""The tokenizer: ids in and out, its limits, its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from server.errors import ErrorCode, QuireError, StartupError
from server.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import byte_fallback, byte_level, word_piece


def test_special_tokens_are_added_as_the_post_processor_says() -> None:
    tokenizer = Tokenizer(byte_fallback())
    assert tokenizer.encode("深")[0] == 1
    assert tokenizer.encode("深", add_special_tokens=False)[0] != 1


def test_encoding_in_a_thread_gives_the_same() -> None:
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.threads.submit(tokenizer.encode, "深度学习是").result()
    assert ids == tokenizer.encode("深度学习是")
    assert tokenizer.decode(ids) == "深度学习是"


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "\ude00\ud83d"])
def test_a_lone_surrogate_is_refused(text: str) -> None:
    with pytest.raises(QuireError, match="lone surrogate"):
        Tokenizer(byte_level()).encode(text)


def test_no_fewer_tokens_than_the_cheap_bound_says() -> None:
    tokenizer = Tokenizer(byte_level())
    for text in ("", "a", "hello " * 50, "深度学习是" * 9):
        assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))
    assert tokenizer.least_tokens("a" * 1000) > 10


def test_the_bytes_of_single_tokens() -> None:
    level, fallback = Tokenizer(byte_level(), vocab_size=999), Tokenizer(byte_fallback())
    assert level.token_bytes(0xE6) == b"\xe6"
    assert level.token_bytes(998) == b""
    assert fallback.token_bytes(3 + 0xE6) == b"\xe6"
    hello = fallback._backend.token_to_id("▁hello")
    assert fallback.token_bytes(hello) == b" hello"
    assert Tokenizer(word_piece()).token_bytes(3) == " 深度".encode()


def test_a_text_with_a_token_that_the_model_was_never_given_is_refused() -> None:
    backend = byte_level()
    known = backend.get_vocab_size(with_added_tokens=True)
    backend.add_special_tokens(["[PAD]"])
    tokenizer = Tokenizer(backend, vocab_size=known)
    assert 0 <= max(tokenizer.encode("PAD")) < known
    with pytest.raises(QuireError, match=rf"'\[PAD\]', whose id {known} is beyond") as raised:
        tokenizer.encode("a [PAD] b")
    assert raised.value.code is ErrorCode.INVALID_VALUE
    assert Tokenizer(backend, vocab_size=known + 1).encode("[PAD]") == [known]


@pytest.mark.parametrize("pieces", ["unigram", "wordlevel"])
def test_a_model_that_was_given_fewer_pieces_refuses_the_others(pieces: str) -> None:
    """Whether the vocabulary is a list, whose places are the ids, or says them."""
    words = ["<unk>", "a", "b", "c"]
    model = (
        models.Unigram([(word, -1.0) for word in words], 0)
        if pieces == "unigram"
        else models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>")
    )
    tokenizer = Tokenizer(tokenizers.Tokenizer(model), vocab_size=3)
    assert tokenizer.encode("b") == [2]
    with pytest.raises(QuireError, match="whose id 3 is beyond"):
        tokenizer.encode("c")


def test_a_folder_without_a_usable_tokenizer_is_refused_by_file(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_folder(tmp_path)
    for content in ("{", "[]", '{"model": {"type": "Mystery"}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(StartupError, match=r"tokenizer\.json cannot be used"):
            Tokenizer.from_folder(tmp_path)


def test_a_folder_with_one_is_read(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path, vocab_size=512)
    assert tokenizer.vocab_size == 512

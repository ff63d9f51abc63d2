"""The cheap bound never refuses a text that fits, and is there wherever length tells something."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from server.errors import QuireError
from server.text.stages import byte_of_character
from server.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import byte_fallback, byte_level, word_piece

WORDS = ("a", "b", "ab", "abab", "hello", "▁a", "▁hello", "  ", "é", "深度")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ALPHABET = sorted(byte_of_character())


def bpe(*pieces: str, **options: Any) -> models.BPE:
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(("<unk>", *WORDS, *pieces)))}
    return models.BPE(vocab=vocab, merges=[], **options)


def unigram(*pieces: str, **options: Any) -> models.Unigram:
    scored = [(piece, -2.0) for piece in dict.fromkeys(("<unk>", *WORDS, *pieces))]
    return models.Unigram(scored, unk_id=0, **options)


MODELS = {
    "bytes": lambda: bpe(*ALPHABET),
    "bytes, whole words": lambda: bpe(*ALPHABET, "Ġhello", "hellohello", ignore_merges=True),
    "byte fallback": lambda: bpe(*BYTES, byte_fallback=True, fuse_unk=True, unk_token="<unk>"),
    "half a byte fallback": lambda: bpe(
        *BYTES[:128], byte_fallback=True, fuse_unk=True, unk_token="<unk>"
    ),
    "an id for each unknown": lambda: bpe(unk_token="<unk>"),
    "unknowns fused": lambda: bpe(unk_token="<unk>", fuse_unk=True),
    "unknowns dropped": lambda: bpe(),
    "prefixed": lambda: bpe("##a", "##b", unk_token="<unk>", continuing_subword_prefix="##"),
    "word ends": lambda: bpe("a</w>", *ALPHABET, end_of_word_suffix="</w>"),
    "Unigram": lambda: unigram(),
    "Unigram, byte fallback": lambda: unigram(*BYTES, byte_fallback=True),
    "WordPiece": lambda: models.WordPiece(
        {"[UNK]": 0, "a": 1, "##a": 2, "hello": 3}, unk_token="[UNK]", max_input_chars_per_word=5
    ),
    "WordLevel": lambda: models.WordLevel({"<unk>": 0, "a": 1, "hello": 2}, unk_token="<unk>"),
}
NORMALIZERS = [
    normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(),
    normalizers.Lowercase(), normalizers.Strip(), normalizers.StripAccents(),
    normalizers.Nmt(), normalizers.BertNormalizer(), normalizers.Prepend("▁"),
    normalizers.Replace(" ", "▁"), normalizers.Replace("abab", "b"), normalizers.Replace("a", ""),
    normalizers.Replace("▁", " "), normalizers.Replace(Regex(r"\s+"), " "),
    normalizers.ByteLevel(),
]  # fmt: skip
CUTS = [
    pre_tokenizers.ByteLevel(add_prefix_space=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    pre_tokenizers.Metaspace(), pre_tokenizers.Metaspace(split=False), pre_tokenizers.Digits(),
    pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(),
    pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Punctuation("removed"),
    pre_tokenizers.Punctuation(), pre_tokenizers.CharDelimiterSplit("a"),
    pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(r"\w+"), "removed"),
    pre_tokenizers.Split(Regex(r"\w+"), "merged_with_next"), pre_tokenizers.UnicodeScripts(),
]  # fmt: skip
ADDED = st.builds(
    AddedToken,
    st.sampled_from(["<s>", "hello hello", "é", "ﬁn", " "]),
    single_word=st.booleans(),
    lstrip=st.booleans(),
    rstrip=st.booleans(),
    normalized=st.booleans(),
    special=st.booleans(),
)
TEXTS = st.lists(
    st.sampled_from(
        ["a", "b", "abab", "hello", " ", "   ", "\n\t", "\u00a0", "\u2003", "\u001c", "<s>", "é",
         "e\u0301", "ᾂ", "α\u0313\u0300\u0345", "ﬁn", "\ufdfa", "深度", "İ", "1", "!", "q" * 40,
         "▁", "\u0000", "한", "\u1112\u1161\u11ab", "👩‍👩‍👧"]
    ) | st.text(max_size=3),
    max_size=20,
).map("".join)  # fmt: skip


def made(
    model: str, normalizer: list[Any], cuts: list[Any], added: list[AddedToken]
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(MODELS[model]())
    if normalizer:
        backend.normalizer = normalizers.Sequence(normalizer)
    if cuts:
        backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    backend.add_tokens(added)
    return backend


@settings(max_examples=250, deadline=None)
@given(
    model=st.sampled_from(list(MODELS)),
    normalizer=st.lists(st.sampled_from(NORMALIZERS), max_size=2),
    cuts=st.lists(st.sampled_from(CUTS), max_size=2),
    added=st.lists(ADDED, max_size=2),
    texts=st.lists(TEXTS, min_size=1, max_size=4),
)
def test_no_text_makes_fewer_tokens_than_the_bound(
    model: str, normalizer: list[Any], cuts: list[Any], added: list[AddedToken], texts: list[str]
) -> None:
    tokenizer = Tokenizer(made(model, normalizer, cuts, added))
    for text in texts:
        try:
            count = len(tokenizer.encode(text, add_special_tokens=False))
        except QuireError:
            continue  # the library panics over some texts: the test below
        assert tokenizer.least_tokens(text) <= count


def test_a_text_that_the_library_panics_over_is_refused_and_the_next_is_not() -> None:
    """An added token that a normalizer strips to nothing matches within a character."""
    backend = made("bytes", [normalizers.Strip()], [], [AddedToken(" ", normalized=True)])
    tokenizer = Tokenizer(backend)
    with pytest.raises(QuireError, match="tokenizer failed over this text"):
        tokenizer.encode("ᾂ")
    assert tokenizer.encode("ab")


@pytest.mark.parametrize(
    ("model", "normalizer", "cuts", "added", "text", "count"),
    [
        ("bytes", [], CUTS[1:2], [AddedToken("<s>", rstrip=True)], "<s>" + " " * 900, 1),
        ("bytes", [], CUTS[1:2], [AddedToken("<s>", lstrip=True)], " " * 900 + "<s>", 1),
        ("bytes", [], [CUTS[6], CUTS[1]], [], "a" + "\u2003" * 900 + "b", 2),
        ("bytes", [normalizers.Strip()], CUTS[1:2], [], " " * 900 + "a", 1),
        ("bytes", [normalizers.Replace(Regex("q+"), "a")], CUTS[1:2], [], "q" * 900, 1),
        ("bytes", [normalizers.Replace("q", "")], CUTS[1:2], [], "q" * 900 + "a", 1),
        ("bytes", [], [CUTS[-3], CUTS[1]], [], "x" * 900 + "!", 1),
        ("WordPiece", [], CUTS[6:7], [], "x" * 900, 1),
        ("WordLevel", [], CUTS[6:7], [], "x" * 900, 1),
        ("Unigram", [], [], [], "x" * 900, 1),
        ("unknowns fused", [], [], [], "x" * 900, 1),
        ("half a byte fallback", [], [], [], "ø" * 900, 1),
        ("unknowns dropped", [], [], [], "x" * 900 + "a", 1),
    ],
)
def test_a_long_text_of_few_tokens_is_not_refused(
    model: str, normalizer: list[Any], cuts: list[Any], added: Any, text: str, count: int
) -> None:
    fresh = [
        AddedToken(one.content, lstrip=one.lstrip, rstrip=one.rstrip, special=True) for one in added
    ]
    tokenizer = Tokenizer(made(model, normalizer, cuts, fresh))
    assert len(tokenizer.encode(text, add_special_tokens=False)) == count
    assert tokenizer.least_tokens(text) <= count


@pytest.mark.parametrize(
    "backend",
    [
        byte_level(),
        byte_fallback(),
        made("bytes", [normalizers.NFC()], CUTS[:1], []),
        made("bytes", [], CUTS[1:2], [AddedToken("<s>", rstrip=True)]),
        made("bytes", [normalizers.NFC(), normalizers.ByteLevel()], [], []),
        made("byte fallback", [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")], [], []),
        made("Unigram, byte fallback", [], CUTS[2:3], []),
        made("an id for each unknown", [], CUTS[6:7], []),
    ],
)
def test_a_hopeless_text_is_told_without_tokenising_it(backend: tokenizers.Tokenizer) -> None:
    tokenizer = Tokenizer(backend)
    assert tokenizer.counts_ahead
    assert tokenizer.least_tokens("深 x" * 20_000) > 1_000


def test_where_length_tells_nothing_it_says_so() -> None:
    tokenizer = Tokenizer(word_piece())
    assert not tokenizer.counts_ahead
    assert tokenizer.least_tokens("x" * 100_000) == 0


def test_bytes_count_where_pieces_are_bytes() -> None:
    tokenizer = Tokenizer(made("bytes", [], CUTS[1:2], []))  # the longest piece is ▁hello
    assert tokenizer.least_tokens("深" * 1000) == 500
    assert tokenizer.least_tokens("\ud83d" * 1000) == 167  # refused later, as no Unicode


@pytest.mark.parametrize("form", [normalizers.NFC(), normalizers.NFKC()])
def test_four_characters_that_become_one_count_as_one(form: Any) -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"?": 0, "a": 1}, merges=[], unk_token="?"))
    backend.normalizer = form
    tokenizer = Tokenizer(backend)
    text = "\u03b1\u0313\u0300\u0345" * 90  # alpha with three marks, which is one character, U+1F82
    assert tokenizer.least_tokens(text) == len(tokenizer.encode(text)) == 90

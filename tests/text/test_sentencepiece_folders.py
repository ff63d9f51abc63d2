"""Folders with a SentencePiece model alone, against transformers and SentencePiece."""

from __future__ import annotations

import importlib
import itertools
import math
import random
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece

from server.errors import StartupError
from server.text.sentencepiece_model import PieceType, read_sentencepiece_model
from server.text.sentencepiece_tokenizer import find_merges, sentencepiece_tokenizer
from server.text.tokenizer import Tokenizer
from server.text.vocabulary_files import command
from tests.text.mixed_lines import mixed_lines
from tests.text.sentencepiece_folders import (
    FOLDERS,
    GEMMA,
    LLAMA,
    T5,
    SentencePieceFolder,
    trained,
    write,
)
from tests.text.test_vocabulary_folders import same_as_transformers
from weights.errors import CheckpointError

transformers = pytest.importorskip("transformers")

LINES = mixed_lines()


@pytest.fixture
def reads_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers reads a model with protobuf's library, which is no dependency: ours reads it for
    both. What ours reads is compared with SentencePiece's own reading below."""

    class Proto(SimpleNamespace):
        def ParseFromString(self, data: bytes) -> None:
            model = read_sentencepiece_model(data, "model")
            self.pieces = [
                SimpleNamespace(piece=one.text, score=one.score, type=int(one.type))
                for one in model.pieces
            ]
            ids = {name: -1 if text is None else 1 for name, text in model.named.items()}
            self.trainer_spec = SimpleNamespace(
                model_type=1 if model.is_unigram else 2,
                byte_fallback=model.byte_fallback,
                unk_id=model.unk_id,
                bos_id=ids.get("bos_token", -1),
                eos_id=ids.get("eos_token", -1),
                **{f"{name[:3]}_piece": text for name, text in model.named.items()},
            )
            self.normalizer_spec = SimpleNamespace(precompiled_charsmap=model.charsmap)

    module = importlib.import_module("transformers.convert_slow_tokenizer")
    monkeypatch.setattr(module, "requires_backends", lambda *_: None)
    monkeypatch.setattr(module, "import_protobuf", lambda: SimpleNamespace(ModelProto=Proto))
    yield


@pytest.mark.parametrize("name", FOLDERS)
def test_a_model_makes_the_tokenizer_of_transformers(
    name: str, tmp_path: Path, reads_models: None
) -> None:
    config = write(tmp_path, FOLDERS[name])
    ours = Tokenizer.from_folder(tmp_path, vocab_size=4096, config=config)
    same_as_transformers(ours, transformers.AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("arguments", [LLAMA, GEMMA, T5], ids=["Llama", "Gemma", "T5"])
def test_the_pieces_are_those_that_sentencepiece_reads(arguments: Mapping[str, Any]) -> None:
    data = trained(arguments)
    model = read_sentencepiece_model(data, "x")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert len(model.pieces) == theirs.piece_size()
    assert model.unk_id == theirs.unk_id()
    for id, piece in enumerate(model.pieces):
        assert (piece.text, piece.score) == (theirs.id_to_piece(id), theirs.get_score(id))
        assert (piece.type is PieceType.CONTROL) == theirs.is_control(id)
        assert (piece.type is PieceType.BYTE) == theirs.is_byte(id)
        assert (piece.type is PieceType.UNKNOWN) == theirs.is_unknown(id)
    names = {"bos_token": theirs.bos_id(), "eos_token": theirs.eos_id()}
    assert {name: model.named[name] for name in names} == {
        name: theirs.id_to_piece(id) for name, id in names.items()
    }


SPECS = {
    f"{kind}, {rule}, {bytes_}, {prefix}, {spaces}": {
        "model_type": kind,
        "normalization_rule_name": rule,
        "byte_fallback": bytes_ == "bytes",
        "add_dummy_prefix": prefix == "prefix",
        "remove_extra_whitespaces": spaces == "spaces removed",
        "vocab_size": 750,
    }
    for kind, rule, bytes_, prefix, spaces in itertools.product(
        ("bpe", "unigram"),
        ("identity", "nmt_nfkc"),
        ("bytes", "unknowns"),
        ("prefix", "no prefix"),
        ("spaces removed", "spaces kept"),
    )
}
# One of each pair of facts in `make test`; all of them are slow.
FEW = [name for index, name in enumerate(SPECS) if index.bit_count() % 2 == 0][::2]


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in FEW else pytest.mark.slow) for one in SPECS]
)
def test_a_model_without_a_class_is_what_sentencepiece_makes_of_it(
    name: str, tmp_path: Path
) -> None:
    """Wherever the library normalizes a line as SentencePiece does: it maps graphemes where
    SentencePiece maps characters, in transformers too. Pieces of equal score may be chosen
    otherwise by Unigram; ▁ in a text is a space to SentencePiece alone."""
    arguments = SPECS[name]
    config = write(tmp_path, SentencePieceFolder(arguments, "stablelm", {"add_bos_token": False}))
    ours = Tokenizer.from_folder(tmp_path, config=config)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained(arguments))
    compared = 0
    for line in LINES:
        if any(mark in line for mark in ("<s>", "</s>", "<unk>", "▁", "<0x")):
            continue
        if ours._backend.normalizer.normalize_str(line) != theirs.normalize(line):
            assert arguments["normalization_rule_name"] == "nmt_nfkc"
            continue
        compared += 1
        ids, expected = ours.encode(line), theirs.encode(line)
        if arguments["model_type"] == "unigram" and ids != expected:
            scores = [sum(theirs.get_score(id) for id in one) for one in (ids, expected)]
            assert math.isclose(*scores, rel_tol=1e-5)
            continue
        assert ids == expected
        if arguments["byte_fallback"]:
            assert ours.decode(ids) == theirs.decode(ids)
    assert compared > 1700


def test_the_file_counts_where_the_class_would_split_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {**LLAMA, "add_dummy_prefix": False}
    options = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    config = write(tmp_path, SentencePieceFolder(arguments, "mistral", options))
    ours = Tokenizer.from_folder(tmp_path, config=config)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained(arguments))
    assert ours.encode("the lazy dog") == [1, *theirs.encode("the lazy dog")]
    assert "normalizes text otherwise than tokenizer_class LlamaTokenizer" in caplog.text


def test_a_first_token_that_nobody_asks_for_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "quire.server")
    write(tmp_path, SentencePieceFolder(LLAMA))
    ours = Tokenizer.from_folder(tmp_path, config={"model_type": "mistral"})
    assert ours.encode("the")[0] != 1
    told, made = (record.getMessage() for record in caplog.records)
    assert told.startswith("tokenizer_config.json does not say add_bos_token: '<s>' is not put")
    assert made.startswith("tokenizer: tokenizer.model converted as the file says in ")


def varint(value: int) -> bytes:
    spelled = bytearray()
    while value > 0x7F:
        spelled.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*spelled, value])


def part(number: int, content: bytes) -> bytes:
    """A field that holds a message, a text or bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def flag(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def piece(text: str, score: float = 0.0, type: PieceType = PieceType.NORMAL) -> bytes:
    told = varint(2 << 3 | 5) + struct.pack("<f", score)
    return part(1, part(1, text.encode()) + told + flag(3, type))


@pytest.mark.parametrize("scores", [(-5.0, -1.0), (-1.0, -5.0)], ids=["bc first", "ab first"])
def test_the_highest_score_is_joined_first_whatever_the_ids(scores: tuple[float, float]) -> None:
    """A trainer numbers pieces by their scores; whoever edits a model need not."""
    ab, bc = scores
    joined = (piece("ab", ab), piece("bc", bc))
    letters = (piece(one, -10.0) for one in ("▁", "a", "b", "c"))
    trainer = part(2, flag(3, 2))
    normalizer = part(3, flag(3, 0) + flag(4, 0))
    data = b"".join((piece("<unk>", 0.0, PieceType.UNKNOWN), *joined, *letters))
    data += trainer + normalizer
    model = read_sentencepiece_model(data, "tokenizer.model")
    ours = sentencepiece_tokenizer(model, None, {}, {}, "tokenizer.model")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert ours.encode("abc").ids == theirs.encode("abc") == ([4, 2] if bc > ab else [1, 6])


UNKNOWN = part(1, part(1, b"<unk>") + flag(3, 2))
PIECE = part(1, part(1, b"a"))
MALFORMED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "has no pieces"),
    "no unknown": (PIECE, "has 0 pieces for what is unknown; it must have one"),
    "two of a piece": (UNKNOWN + PIECE + PIECE, 'pieces 1 and 2 are both "a"'),
    "an empty piece": (UNKNOWN + part(1, part(1, b"")), "piece 1 has 0 characters; 1 to 1024 are"),
    "a long piece": (UNKNOWN + part(1, part(1, b"x" * 1025)), "piece 1 has 1025 characters"),
    "a piece that is not UTF-8": (UNKNOWN + part(1, part(1, b"\xff")), "piece 1 is not UTF-8"),
    "an unused piece": (
        UNKNOWN + part(1, part(1, b"a") + flag(3, 5)),
        'piece 1, "a", is unused: this is not served',
    ),
    "a type that is none": (
        UNKNOWN + part(1, part(1, b"a") + flag(3, 9)),
        'piece 1, "a", has no known type',
    ),
    "a score that is not finite": (
        UNKNOWN + part(1, part(1, b"a") + b"\x15\x00\x00\xc0\x7f"),
        'piece 1, "a", has a score that is not finite',
    ),
    "a score of another wire type": (
        UNKNOWN + part(1, part(1, b"a") + flag(2, 1)),
        "piece 1: score has wire type 0, not 5",
    ),
    "a group": (b"\x0b", "the model has a field of wire type 3: it is no such message"),
    "cut off in a piece": (PIECE[:-1], "the model is cut off at byte 4: the file is not whole"),
    "cut off in a number": (b"\xff\xff", "the model is cut off at byte 2: the file is not whole"),
    "a number without an end": (b"\xff" * 11, "the model has a number of more than 64 bits"),
    "words": (UNKNOWN + part(2, flag(3, 3)), "is of the type word; unigram and bpe are served"),
    "another type": (UNKNOWN + part(2, flag(3, 7)), "is of the type unknown; unigram and bpe are"),
    "suffixes": (UNKNOWN + part(2, flag(24, 1)), "treat_whitespace_as_suffix is not served"),
    "no escapes": (UNKNOWN + part(3, flag(5, 0)), "escape_whitespaces off is not served"),
    "a denormalizer": (
        UNKNOWN + part(5, part(2, b"x")),
        "denormalizer_spec changes what is decoded, which is not served",
    ),
    "bytes without pieces": (
        UNKNOWN + part(2, flag(35, 1)),
        "has byte_fallback and 0 pieces for the 256 bytes",
    ),
    "a text file": (b"hello, this is no model\n", "the model "),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_model_is_refused_by_name(name: str, tmp_path: Path) -> None:
    data, told = MALFORMED[name]
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(StartupError) as refused:
        Tokenizer.from_folder(tmp_path)
    assert str(refused.value).startswith(f"tokenizer.model: {told}")


def test_a_tiktoken_file_of_the_name_is_refused_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(StartupError, match=r"tokenizer\.model: it is a tiktoken file") as refused:
        Tokenizer.from_folder(tmp_path)
    assert str(refused.value).endswith(command(tmp_path))


@pytest.mark.parametrize("arguments", [LLAMA, T5], ids=["Llama", "T5"])
def test_damage_anywhere_is_refused_or_read_and_never_more(
    arguments: Mapping[str, Any], tmp_path: Path
) -> None:
    """Bytes changed, cut off and doubled: at worst the model is another one."""
    data, draw = trained(arguments), random.Random(3)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 1, 8))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        if draw.random() < 0.3:
            del damaged[draw.randrange(len(damaged)) :]
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        try:
            Tokenizer.from_folder(tmp_path).decode([1, 2, 3])
        except StartupError as error:
            assert str(error).startswith("tokenizer.model")
            refused += 1
    assert refused > 20


def test_ids_beyond_the_model_are_refused(tmp_path: Path) -> None:
    write(tmp_path, SentencePieceFolder(LLAMA))
    with pytest.raises(StartupError, match=r"has the id 899, but the model's vocabulary has 899"):
        Tokenizer.from_folder(tmp_path, vocab_size=899)


def test_code_of_the_folder_is_told_and_the_file_serves_without_it(tmp_path: Path) -> None:
    """InternLM 2 and Baichuan publish a model and a class of their own."""
    options = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["x.Y", None]},
    }
    write(tmp_path, SentencePieceFolder(LLAMA, tokenizer_config=options))
    with pytest.raises(StartupError, match=r"If tokenizer\.model says all of it, set .* and drop"):
        Tokenizer.from_folder(tmp_path)
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}
    write(tmp_path, SentencePieceFolder(LLAMA, tokenizer_config=plain))
    ids = sentencepiece.SentencePieceProcessor(model_proto=trained(LLAMA)).encode(" the dog")
    assert Tokenizer.from_folder(tmp_path).encode(" the dog") == [1, *ids]


def test_a_class_that_is_made_of_other_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, SentencePieceFolder(LLAMA))
    with pytest.raises(StartupError, match="GPT2Tokenizer is made of other files: set"):
        Tokenizer.from_folder(tmp_path, config={"model_type": "gpt2"})


def test_pieces_too_long_for_their_merges_are_refused() -> None:
    long = [part(1, part(1, b"x" * 900 + str(index).encode())) for index in range(500)]
    model = read_sentencepiece_model(UNKNOWN + b"".join(long) + part(2, flag(3, 2)), "x")
    with pytest.raises(CheckpointError, match="too long to find their merges"):
        find_merges(model)

"""Folders without a tokenizer.json: ids, texts and streams are transformers'."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.errors import StartupError
from server.text.tokenizer import Tokenizer
from server.text.tokenizer_classes import _OF_MODEL_TYPE, class_of_folder
from server.text.tokenizer_recipes import RECIPES
from server.text.vocabulary_files import command
from tests.text import vocabulary_folders
from tests.text.mixed_lines import mixed_lines
from weights.families import FAMILIES

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

LINES = mixed_lines()
PLAIN = "TokenizersBackend"


def same_as_transformers(ours: Tokenizer, theirs: Any, *, lines: list[str] = LINES) -> None:
    """Ids with and without the ends, the texts of these ids, and some of the texts as streams."""
    for special in (True, False):
        expected = theirs(lines, add_special_tokens=special)["input_ids"]
        assert [ours.encode(line, add_special_tokens=special) for line in lines] == expected
        assert all(
            len(ids) >= ours.least_tokens(line) for line, ids in zip(lines, expected, strict=True)
        )
        said = theirs.decode(expected, skip_special_tokens=special)
        assert [ours.decode(ids, skip_special_tokens=special) for ids in expected] == said
    for ids in expected[::4]:
        stream = ours.stream()
        pieces = (ours.text_piece(id) for id in ids)
        streamed = "".join(stream.feed(piece) for piece in pieces if piece is not None)
        assert streamed + stream.flush() == ours.decode(ids)
    named = {
        name: text for name, text in theirs.special_tokens_map.items() if isinstance(text, str)
    }
    assert ours.named_tokens == named


@pytest.mark.parametrize("name", vocabulary_folders.FOLDERS)
def test_vocab_and_merges_make_the_tokenizer_of_their_class(name: str, tmp_path: Path) -> None:
    config = vocabulary_folders.write(tmp_path, name)
    ours = Tokenizer.from_folder(tmp_path, vocab_size=4096, config=config)
    same_as_transformers(ours, transformers.AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("declared", [None, "GPT2Tokenizer", "LlamaTokenizerFast", "Unknown"])
def test_the_class_of_each_model_type_is_transformers(declared: str | None) -> None:
    """AutoTokenizer's rules, for every family and more; tokenizer.json spells no bytes."""
    auto = transformers.models.auto.tokenization_auto
    for model_type in sorted({family.model_type for family in FAMILIES} | set(_OF_MODEL_TYPE)):
        own = auto.TOKENIZER_MAPPING_NAMES.get(model_type)
        wrong = model_type in auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
        name = None if declared is None else declared.removesuffix("Fast")
        if name is None or (own is not None and own != name and (own == PLAIN or wrong)):
            name = own
        expected = name if name in RECIPES else None
        options = {} if declared is None else {"tokenizer_class": declared}
        found = class_of_folder({"model_type": model_type}, options, is_byte_level=False)
        assert found == expected, model_type


def files(folder: Path, **content: object) -> Path:
    """A good GPT-2 folder with some files changed; None removes one, text is written as it is."""
    vocabulary_folders.write(folder, "GPT-2, no other file")
    for name, value in content.items():
        path = folder / name.replace("_json", ".json").replace("_txt", ".txt")
        if value is None:
            path.unlink()
        elif isinstance(value, bytes):
            path.write_bytes(value)
        else:
            path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


GPT2 = {"model_type": "gpt2"}
MALFORMED: dict[str, tuple[dict[str, object], dict[str, Any], str]] = {
    "no merges": (
        {"merges_txt": None},
        GPT2,
        "tokenizer.json is missing from model, and vocab.json is nothing without merges.txt, which "
        "is missing too. Add that file",
    ),
    "no vocabulary": (
        {"vocab_json": None},
        GPT2,
        "tokenizer.json is missing from model, and merges.txt is nothing without vocab.json, which "
        "is missing too. Add that file",
    ),
    "neither": (
        {"vocab_json": None, "merges_txt": None},
        GPT2,
        "tokenizer.json is missing from model, and so are vocab.json and merges.txt, and "
        "tokenizer.model. Copy the tokenizer's files of the model's repository into the folder",
    ),
    "no class": (
        {},
        {"model_type": "gpt_bigcode"},
        "tokenizer.json is missing from model; of vocab.json and merges.txt a tokenizer is made by "
        "class, and no class is told: set tokenizer_class in tokenizer_config.json to "
        "the model's, one of GPT2Tokenizer, CodeGenTokenizer, GPTNeoXTokenizer, Qwen2Tokenizer, "
        "CohereTokenizer, RobertaTokenizer, OpenAIGPTTokenizer; or make tokenizer.json on a "
        "machine with transformers: COMMAND",
    ),
    "another class": (
        {"tokenizer_config_json": {"tokenizer_class": "LlamaTokenizer"}},
        {},
        "tokenizer.json is missing from model; of vocab.json and merges.txt a tokenizer is made by "
        "class, and LlamaTokenizer is made of other files: set tokenizer_class in "
        "tokenizer_config.json to the model's, one of GPT2Tokenizer, CodeGenTokenizer, "
        "GPTNeoXTokenizer, Qwen2Tokenizer, CohereTokenizer, RobertaTokenizer, OpenAIGPTTokenizer; "
        "or make tokenizer.json on a machine with transformers: COMMAND",
    ),
    "CLIP": (
        {"tokenizer_config_json": {"tokenizer_class": "CLIPTokenizer"}},
        {},
        "tokenizer_config.json: tokenizer_class CLIPTokenizer is not served: transformers builds "
        "it by class. Served: GPT2Tokenizer, CodeGenTokenizer, GPTNeoXTokenizer, Qwen2Tokenizer, "
        "CohereTokenizer, RobertaTokenizer, OpenAIGPTTokenizer, LlamaTokenizer, "
        "CodeLlamaTokenizer, GemmaTokenizer, BertTokenizer. Make a tokenizer.json, or set "
        "tokenizer_class to one that is served",
    ),
    "code of the folder": (
        {"tokenizer_config_json": {"tokenizer_class": "Ours", "auto_map": ["a.Ours", None]}},
        {},
        "tokenizer_config.json: auto_map: Ours is code of the folder, which is never run. Make a "
        "tokenizer.json, or set tokenizer_class to one that is served and drop auto_map",
    ),
    "merges of another model": (
        {"vocab_json": {"a": 0, "b": 1}, "merges_txt": "#version: 0.2\na b\n"},
        GPT2,
        'merges.txt: line 2 merges "a" and "b", but vocab.json has no "ab": the two are not of one '
        "model",
    ),
    "a merge of three": (
        {"merges_txt": "a b c\n"},
        GPT2,
        'merges.txt: line 1, "a b c", is not two pieces with a space between them',
    ),
    "an empty line": (
        {"merges_txt": "#version: 0.2\n\nh e\n"},
        GPT2,
        'merges.txt: line 2, "", is not two pieces with a space between them',
    ),
    "merges that are not UTF-8": (
        {"merges_txt": b"a \xff\n"},
        GPT2,
        "merges.txt: is not UTF-8 at byte 2",
    ),
    "a vocabulary that is a list": (
        {"vocab_json": ["a"]},
        GPT2,
        "vocab.json: must be a JSON object, not a list of 1",
    ),
    "a cut vocabulary": ({"vocab_json": '{"a": 0, "b'}, GPT2, "vocab.json: is not valid JSON: "),
    "a token twice": (
        {"vocab_json": '{"a": 0, "a": 1}'},
        GPT2,
        'vocab.json: has a duplicate key: "a"',
    ),
    "an id twice": (
        {"vocab_json": {"a": 0, "b": 0}},
        GPT2,
        'vocab.json: "b" and "a" have the same id 0',
    ),
    "an id that is none": (
        {"vocab_json": {"a": 0.5}},
        GPT2,
        'vocab.json: "a" must have an id, not 0.5',
    ),
    "an empty vocabulary": ({"vocab_json": {}}, GPT2, "vocab.json: it has no tokens"),
    "an id beyond the model": (
        {"vocab_json": {"a": 0, "b": 5000}, "merges_txt": ""},
        GPT2,
        "vocab.json and merges.txt: 'b' has the id 5000, but the model's vocabulary has 4096 "
        "tokens: the files are another model's",
    ),
    "a flag that is none": (
        {"tokenizer_config_json": {"add_bos_token": "yes"}},
        GPT2,
        "tokenizer_config.json: add_bos_token must be true or false, not 'yes'",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_cannot_be_converted_is_refused_by_file_and_name(name: str, tmp_path: Path) -> None:
    content, config, told = MALFORMED[name]
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(StartupError) as refused:
        Tokenizer.from_folder(files(folder, **content), vocab_size=4096, config=config)
    assert str(refused.value).startswith(told.replace("COMMAND", command(folder)))


@pytest.mark.parametrize("name", ["tiktoken.model", "qwen.tiktoken", "vocab.txt"])
def test_a_vocabulary_of_another_kind_is_refused_with_the_command(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(
        StartupError, match=r"is missing from .*, and .* is not converted\. On a"
    ) as refused:
        Tokenizer.from_folder(tmp_path, config=GPT2)
    assert name in str(refused.value)
    assert str(refused.value).endswith(command(tmp_path))


@pytest.mark.slow
def test_the_command_makes_the_file(tmp_path: Path) -> None:
    """On the folder's own words, with a name that a shell would split."""
    folder = tmp_path / "a model's folder"
    folder.mkdir()
    config = vocabulary_folders.write(folder, "OPT, its first token added")
    before = Tokenizer.from_folder(folder, config=config)
    line = command(folder).replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    subprocess.run(["bash", "-c", line], check=True, capture_output=True)
    after = Tokenizer.from_folder(folder, config=config)
    assert (folder / "tokenizer.json").is_file()
    assert [after.encode(line) for line in LINES[:200]] == [
        before.encode(line) for line in LINES[:200]
    ]


def test_a_conversion_is_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "quire.server")
    Tokenizer.from_folder(files(tmp_path), config=GPT2)
    [record] = caplog.records
    told = r"tokenizer: vocab\.json and merges\.txt converted as GPT2Tokenizer in \d+\.\d\d s"
    assert re.fullmatch(told, record.getMessage())


def test_bytes_without_a_token_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Tokenizer.from_folder(files(tmp_path, vocab_json={"a": 0, "b": 1}, merges_txt=""), config=GPT2)
    assert "vocab.json: 254 of the 256 bytes have no token" in caplog.text


def test_damage_anywhere_is_refused_or_read_and_never_more(tmp_path: Path) -> None:
    draw = random.Random(4)
    refused = 0
    for name in ("vocab.json", "merges.txt") * 60:
        folder = files(tmp_path)
        damaged = bytearray((folder / name).read_bytes())
        for _ in range(draw.choice((1, 2, 8))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        if draw.random() < 0.3:
            del damaged[draw.randrange(len(damaged)) :]
        (folder / name).write_bytes(damaged)
        try:
            Tokenizer.from_folder(folder, config=GPT2).decode([1, 2, 3])
        except StartupError as error:
            assert str(error).startswith(("vocab.json", "merges.txt"))
            refused += 1
    assert refused > 60

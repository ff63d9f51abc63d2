"""A folder's tokenizer is transformers', wherever its special tokens stand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from server.errors import QuireError, StartupError
from server.text.tokenizer import Tokenizer
from server.text.tokenizer_classes import class_of_folder
from server.text.tokenizer_recipes import RECIPES
from tests.text.mixed_lines import mixed_lines
from tests.text.tokenizer_folders import END, VARIANTS, added, texts, write_folder
from tests.text.trained_tokenizers import byte_level, word_piece

TEXTS = texts()
MIXED = mixed_lines()


@pytest.fixture(scope="module")
def reference() -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    return transformers.AutoTokenizer


@pytest.mark.parametrize("name", VARIANTS)
def test_ids_and_texts_are_those_of_transformers(name: str, tmp_path: Path, reference: Any) -> None:
    config = write_folder(tmp_path, name)
    ours = Tokenizer.from_folder(tmp_path, vocab_size=4096, config=config)
    theirs = reference.from_pretrained(tmp_path)
    for special in (True, False):
        expected = theirs(TEXTS, add_special_tokens=special)["input_ids"]
        assert [ours.encode(text, add_special_tokens=special) for text in TEXTS] == expected
        said = theirs.decode(expected, skip_special_tokens=special)
        assert [ours.decode(ids, skip_special_tokens=special) for ids in expected] == said
    draw = random.Random(5)
    for _ in range(60):
        ids = [draw.randrange(len(theirs)) for _ in range(draw.randrange(1, 12))]
        said = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == said
        stream = ours.stream()
        pieces = [ours.text_piece(id) for id in ids]
        streamed = "".join(stream.feed(piece) for piece in pieces if piece is not None)
        assert streamed + stream.flush() == said


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_ids_of_mixed_scripts_are_those_of_transformers(
    name: str, tmp_path: Path, reference: Any
) -> None:
    config = write_folder(tmp_path, name)
    ours = Tokenizer.from_folder(tmp_path, vocab_size=4096, config=config)
    theirs = reference.from_pretrained(tmp_path)
    expected = theirs(MIXED)["input_ids"]
    assert [ours.encode(line) for line in MIXED] == expected
    said = theirs.decode(expected, skip_special_tokens=True)
    assert [ours.decode(ids) for ids in expected] == said


def save(folder: Path, config: object = None, **files: object) -> Path:
    byte_level().save(str(folder / "tokenizer.json"))
    for file, value in (("tokenizer_config", config), *files.items()):
        if value is not None:
            (folder / f"{file}.json").write_text(json.dumps(value))
    return folder


def test_a_template_s_end_token_is_one_token(tmp_path: Path) -> None:
    """<|endoftext|> of tokenizer_config.json was spelled by its letters."""
    tokenizer = Tokenizer.from_folder(save(tmp_path, {"eos_token": END}))
    assert tokenizer.encode(f"a{END}", add_special_tokens=False)[1:] == [340]
    assert tokenizer.special_ids == {340}


def test_what_code_llama_fills_in_is_refused_and_not_read_as_a_token(tmp_path: Path) -> None:
    """transformers turns such a text round; no checkpoint of the class has the token."""
    config = write_folder(tmp_path, "Code Llama by class, as published")
    whole = Tokenizer.from_folder(tmp_path, config=config)
    ours = Tokenizer.from_folder(tmp_path, config=config, vocab_size=whole.vocab_size - 1)
    assert ours.piece(ours.encode("def f():▁<PRE>")[-1]) == "▁<PRE>"
    with pytest.raises(QuireError, match=r"'<FILL_ME>', whose id .* is beyond the model's"):
        ours.encode("def f():<FILL_ME>    return 1")


@pytest.mark.parametrize(
    ("config", "files", "told"),
    [
        (
            {"added_tokens_decoder": {"999": added(END)}},
            {},
            r"added_tokens_decoder: the token '<\|endoftext\|>' has the id 999, .* it gets 340",
        ),
        ({}, {"added_tokens": {"the": 3}}, r"added_tokens\.json: the token 'the' has the id 3"),
        ({}, {"added_tokens": {"x y": "3"}}, r'added_tokens\.json: "x y" must have an id'),
        ({}, {"added_tokens": []}, r"added_tokens\.json must be a JSON object"),
        ({"added_tokens_decoder": {"x": {}}}, {}, 'added_tokens_decoder: "x" is not a token id'),
        ({"added_tokens_decoder": {"1": {"content": 5}}}, {}, "a token is an object with its"),
        ({"eos_token": 5}, {}, r"tokenizer_config\.json: eos_token must be text"),
        ({"extra_special_tokens": "x"}, {}, "extra_special_tokens must be a list"),
        ({"split_special_tokens": "yes"}, {}, "split_special_tokens must be true or false"),
        ({}, {"special_tokens_map": {"eos_token": {"lstrip": True}}}, r"special_tokens_map\.json"),
        ({"tokenizer_class": "T5TokenizerFast"}, {}, "tokenizer_class T5TokenizerFast is not"),
        (
            {"tokenizer_class": "OurTokenizer", "auto_map": {"AutoTokenizer": ["a.B", None]}},
            {},
            "auto_map: OurTokenizer is code of the folder",
        ),
        ({"init_inputs": [1]}, {}, "init_inputs"),
        ({"fix_mistral_regex": True}, {}, "fix_mistral_regex is not followed: load the folder"),
        ({"legacy": "no"}, {}, "legacy must be true or false, not 'no'"),
        ({"fast_tokenizer_files": ["tokenizer.4.json"]}, {}, "fast_tokenizer_files"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_file_and_name(
    config: object, files: dict[str, object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(StartupError, match=told):
        Tokenizer.from_folder(save(tmp_path, config, **files))


def test_ids_of_tokenizer_json_that_contradict_its_order_are_refused(tmp_path: Path) -> None:
    trunk = json.loads(save(tmp_path).joinpath("tokenizer.json").read_text())
    trunk["added_tokens"] = [{"id": 400, **added(END)}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(trunk))
    with pytest.raises(StartupError, match=r"tokenizer\.json: the token .* has the id 400"):
        Tokenizer.from_folder(tmp_path)


def test_a_token_that_the_class_would_lose_is_told_with_what_to_do(tmp_path: Path) -> None:
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {"340": added(END)}}
    trunk = json.loads(save(tmp_path, config).joinpath("tokenizer.json").read_text())
    trunk["added_tokens"] = [{"id": 340, **added(END)}, {"id": 341, **added("<tool>")}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(trunk))
    with pytest.raises(StartupError, match=r"'<tool>' with the id 341 is lost.* Add it there"):
        Tokenizer.from_folder(tmp_path)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_folder(tmp_path).encode("<tool>") == [341]


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"[" * 100_000, b"[]", b"{"])
def test_an_unreadable_tokenizer_config_is_told_and_tokenizer_json_serves(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (save(tmp_path) / "tokenizer_config.json").write_bytes(content)
    assert Tokenizer.from_folder(tmp_path).encode("the cat")
    assert "tokenizer_config.json" in caplog.text


def test_a_file_that_leads_out_of_the_folder_is_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside.json"
    folder.mkdir()
    outside.write_text(json.dumps({END: 340}))
    (save(folder) / "tokenizer_config.json").symlink_to(outside)
    Tokenizer.from_folder(folder)
    assert "leads outside the folder" in caplog.text
    (folder / "added_tokens.json").symlink_to(outside)
    with pytest.raises(StartupError, match=r"added_tokens\.json: is a link that leads outside"):
        Tokenizer.from_folder(folder)


def test_a_class_that_splits_otherwise_than_the_file_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    word_piece().save(str(tmp_path / "tokenizer.json"))
    Tokenizer.from_folder(save(tmp_path), config={"model_type": "gpt2"})
    assert not caplog.records
    word_piece().save(str(tmp_path / "tokenizer.json"))
    Tokenizer.from_folder(tmp_path, config={"model_type": "gpt2"})
    assert "tokenizer_class GPT2Tokenizer, which counts as in transformers" in caplog.text


def test_the_class_is_config_json_s_where_only_that_names_one() -> None:
    assert class_of_folder({"tokenizer_class": "LlamaTokenizer"}, {}, is_byte_level=False) == (
        "LlamaTokenizer"
    )
    assert class_of_folder({"tokenizer_class": "LlamaTokenizer"}, {}, is_byte_level=True) is None
    assert set(RECIPES) >= {"GPT2Tokenizer", "LlamaTokenizer"}

"""A template gives here what it gives in transformers: same names, same Jinja, same text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from server.errors import ErrorCode, QuireError
from server.text.chat_template import ChatTemplate, TemplateLimits
from server.text.tokenizer import Tokenizer
from tests.text.chat_templates import GEMMA, MISTRAL, PARTS_ONLY, TEMPLATES
from weights.synthetic.tokenizer import write_tokenizer

transformers = pytest.importorskip("transformers")

PATIENT = TemplateLimits(cpu_seconds=30, wall_seconds=600, wait_seconds=600)
Conversation = Sequence[Mapping[str, Any]]

SYSTEM = {"role": "system", "content": " Be <brief> & «kind».\n"}
USER = {"role": "user", "content": "深度学习是 \"what\"?\n\n  'tell'  "}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nLearning 🙂 "}
MORE = {"role": "user", "content": "And {{ then }}?", "name": "Zoë"}
CONVERSATIONS: dict[str, Conversation] = {
    "one": [USER],
    "with a system message": [SYSTEM, USER],
    "several turns": [SYSTEM, USER, ANSWER, MORE],
    "no system message": [USER, ANSWER, MORE, ANSWER, USER],
    "keys without a value": [{**USER, "name": None}, {**ANSWER, "refusal": None}, MORE],
}
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>"},
    "unk_token": "<unk>",
    "pad_token": None,
    "mask_token": "<mask>",
    "image_token": "<image>",
    "own_token": {"__type": "AddedToken", "content": "<own>"},
    "add_bos_token": True,
    "extra_special_tokens": {"boi": "<boi>"},
}


def texts(template: ChatTemplate, conversations: Sequence[Conversation]) -> list[str]:
    async def story() -> list[str]:
        try:
            return [await template.render(messages) for messages in conversations]
        finally:
            await template.close()

    return asyncio.run(story())


class Noon:
    """One moment, for ours and for transformers."""

    @staticmethod
    def now() -> datetime:
        return datetime(2026, 2, 3, 12, 4, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 300)
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("server.text.chat_template.datetime", Noon)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Noon)
    yield


def expected(reference: Any, source: str, messages: Conversation) -> str:
    text: str = reference.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    return text


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_style_renders_the_same_text(name: str, folder: Path, reference: Any) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    tokens = Tokenizer.from_folder(folder).named_tokens
    template = ChatTemplate.from_folder(folder, tokens, PATIENT)
    assert template is not None
    found = texts(template, list(CONVERSATIONS.values()))
    for messages, text in zip(CONVERSATIONS.values(), found, strict=True):
        assert text == expected(reference, TEMPLATES[name], messages)
    assert len(set(found)) > 1 or name == "absences"


def test_a_list_of_parts_reaches_a_template_that_reads_it(reference: Any) -> None:
    parts = [{"type": "text", "text": " 深 "}, {"type": "text", "text": "度"}]
    told = [
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": parts},
    ]
    for source in (GEMMA, PARTS_ONLY):
        template = ChatTemplate(source, {"bos_token": "<s>"}, PATIENT)
        assert texts(template, [told]) == [expected(reference, source, told)]


def test_a_template_that_would_lose_a_form_of_content_is_given_the_other(reference: Any) -> None:
    """transformers writes the list as Python does, or nothing of a text: no prompt at all."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    parts = [{"type": "text", "text": "深"}, {"type": "text", "text": "度"}]
    [text] = texts(ChatTemplate(MISTRAL, tokens, PATIENT), [[{"role": "user", "content": parts}]])
    assert text == expected(reference, MISTRAL, [{"role": "user", "content": "深\n度"}])
    [text] = texts(ChatTemplate(PARTS_ONLY, {}, PATIENT), [[USER]])
    as_parts = [{"role": "user", "content": [{"type": "text", "text": USER["content"]}]}]
    assert text == expected(reference, PARTS_ONLY, as_parts)


def test_a_namespace_holds_no_hidden_name(reference: Any) -> None:
    for source in ("{{ namespace(_a=1) }}", "{% set n = namespace() %}{% set n._b = 1 %}"):
        with pytest.raises(Exception, match="underscore"):
            expected(reference, source, [USER])
        with pytest.raises(QuireError, match="begins with _") as raised:
            texts(ChatTemplate(source, limits=PATIENT), [[USER]])
        assert raised.value.code is ErrorCode.INTERNAL


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "none": ({}, None),
    "the older file alone": ({}, {"bos_token": "<s>", "eos_token": {"content": "</s>"}}),
    "the older file goes first": (
        {"bos_token": "<a>", "mask_token": "<m>"},
        {"bos_token": "<b>", "mask_token": None, "boa_token": "<c>"},
    ),
    "the newer file says it all": (
        {"bos_token": "<a>", "added_tokens_decoder": {}},
        {"bos_token": "<b>", "eos_token": "<c>"},
    ),
    "extra tokens by name": ({"extra_special_tokens": {"image": "<i>", "x_token": "<x>"}}, None),
    "extra tokens as lists": (
        {"additional_special_tokens": ["<q>"], "cls_token": "<c>"},
        {"extra_special_tokens": ["<r>"]},
    ),
    "extra tokens by name in the older file": ({}, {"extra_special_tokens": {"nn": "<n>"}}),
    "as transformers saves them": ({"model_specific_special_tokens": {"foo": "<f>"}}, None),
    "own names go before the saved": (
        {"model_specific_special_tokens": {"foo": "<f>"}, "boi_token": "<b>"},
        None,
    ),
    "those of a class": ({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<e>"}, None),
    "an empty one": ({"bos_token": "", "add_bos_token": True}, {"eos_token": None}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_special_tokens_have_the_names_that_transformers_gives(name: str, tmp_path: Path) -> None:
    config, older = VARIANTS[name]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    write_tokenizer(tmp_path, 300)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if older is not None:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(older))
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.from_folder(tmp_path).named_tokens == reference.special_tokens_map

"""The demo tokenizer gives every text back, and its template marks the turns."""

from __future__ import annotations

import json

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weights.demo.score import CHECKPOINT
from weights.demo.tokenizer import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    PADDING,
    PADDING_ID,
    VOCABULARY,
    load_tokenizer,
    train_tokenizer,
)

TOKENIZER = load_tokenizer(CHECKPOINT)
TEXTS = [
    "",
    " ",
    "深度学习是",
    "naïve café — “quotes” 😀👩‍🔬\u200d",
    "def f(x):\n\n    if x:\n\treturn  x\r\n  \n",
    "".join(map(chr, range(256))),
    "\ufeffعربى हिन्दी \U0010ffff",
]


def there_and_back(text: str) -> str:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    return str(TOKENIZER.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("text", TEXTS)
def test_chosen_texts_come_back(text: str) -> None:
    assert there_and_back(text).encode() == text.encode()


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back(text: str) -> None:
    assert there_and_back(text) == text


@given(st.binary(max_size=200))
def test_bytes_that_form_text_come_back(data: bytes) -> None:
    text = data.decode("utf-8", errors="ignore")
    assert there_and_back(text).encode() == text.encode()


def test_vocabulary_holds_every_byte_and_the_special_tokens() -> None:
    vocabulary = TOKENIZER.get_vocab()
    assert len(vocabulary) == VOCABULARY
    assert sorted(vocabulary.values()) == list(range(VOCABULARY))
    assert vocabulary[END_OF_TEXT] == END_OF_TEXT_ID
    assert vocabulary[PADDING] == PADDING_ID
    # In a byte-level vocabulary each byte stands as one character; 256 of them.
    assert sum(len(token) == 1 for token in vocabulary) == 256


def test_nothing_is_added_to_a_prompt() -> None:
    assert TOKENIZER.encode("x").ids == TOKENIZER.encode("x", add_special_tokens=False).ids


def test_an_indented_line_break_is_one_token() -> None:
    assert len(TOKENIZER.encode("\n        ").ids) == 1


def test_training_is_repeatable() -> None:
    texts = ["def one():\n    return 1\n", "import os\nimport sys\n"] * 3
    assert train_tokenizer(texts, 300).to_str() == train_tokenizer(texts, 300).to_str()


def test_template_names_roles_and_ends_with_the_assistant() -> None:
    config = json.loads((CHECKPOINT / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = jinja2.Environment(autoescape=False).from_string(config["chat_template"])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    closed = template.render(messages=messages, add_generation_prompt=False)
    opened = template.render(messages=messages, add_generation_prompt=True)
    assert closed == "system:\nBe brief.\n\nuser:\nHi\n\n"
    assert opened == closed + "assistant:\n"

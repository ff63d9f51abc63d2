"""Where a folder keeps its template, and files from which none can be had."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from server.errors import ErrorCode, QuireError
from server.text.chat_template import ChatTemplate
from server.text.template_files import FoundTemplate, find_template

CONFIG, JINJA = "tokenizer_config.json", "chat_template.jinja"
MORE = "additional_chat_templates"


def write(folder: Path, files: dict[str, bytes | str | object]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))


def named(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "template": f"the {name} one"} for name in names]


@pytest.mark.parametrize(
    ("files", "source", "file"),
    [
        ({CONFIG: {"chat_template": "plain"}}, "plain", CONFIG),
        ({CONFIG: {"chat_template": named("tool_use", "default")}}, "the default one", CONFIG),
        ({CONFIG: {"chat_template": {"rag": "no", "default": "yes"}}}, "yes", CONFIG),
        ({CONFIG: {"chat_template": [*named("default"), {}, 3]}}, "the default one", CONFIG),
        ({CONFIG: {"chat_template": "plain"}, JINJA: "own"}, "own", JINJA),
        ({JINJA: "own", f"{MORE}/tool_use.jinja": b"\xff"}, "own", JINJA),
        ({f"{MORE}/default.jinja": "more", JINJA: "own"}, "more", f"{MORE}/default.jinja"),
    ],
)
def test_where_a_folder_keeps_its_template(
    files: dict[str, object], source: str, file: str, tmp_path: Path
) -> None:
    write(tmp_path, files)
    found = find_template(tmp_path)
    assert found is not None
    assert (found.source, found.file, found.problem) == (source, file, None)


@pytest.mark.parametrize("files", [{}, {CONFIG: {}}, {CONFIG: {"chat_template": None}}])
def test_a_folder_without_a_template(files: dict[str, object], tmp_path: Path) -> None:
    write(tmp_path, files)
    assert find_template(tmp_path) is None


DEEP = "[" * 100_000 + "]" * 100_000
UNUSABLE: list[tuple[dict[str, object], str, str]] = [
    ({JINJA: b"{{ x }}\xff"}, JINJA, "it is not UTF-8 (byte 7); save it as UTF-8"),
    ({JINJA: "{{ x }}".encode("utf-16")}, JINJA, "it is not UTF-8 (byte 0)"),
    ({JINJA: "x" * (1 << 20) + "x"}, JINJA, "it has 1048577 bytes; at most 1048576 are read"),
    ({JINJA: " \n"}, JINJA, "the template is empty"),
    ({f"{JINJA}/x": "x"}, JINJA, "is not a regular file"),
    (
        {f"{MORE}/tool_use.jinja": "x"},
        MORE,
        f'is named "default"; put the one for chats into {JINJA}',
    ),
    ({f"{MORE}/default.jinja": b"\xff"}, f"{MORE}/default.jinja", "it is not UTF-8"),
    (
        {CONFIG: {"chat_template": named("tool_use")}},
        CONFIG,
        'a list without a template named "def',
    ),
    ({CONFIG: {"chat_template": []}}, CONFIG, 'a list without a template named "default"'),
    ({CONFIG: {"chat_template": [["default", "x"]]}}, CONFIG, 'without a template named "default"'),
    ({CONFIG: {"chat_template": {}}}, CONFIG, 'an object without a template named "default"'),
    ({CONFIG: {"chat_template": 1}}, CONFIG, "chat_template is a int; it must be text"),
    ({CONFIG: {"chat_template": False}}, CONFIG, "chat_template is a bool; it must be text"),
    ({CONFIG: {"chat_template": ""}}, CONFIG, "the template is empty"),
    ({CONFIG: DEEP}, CONFIG, "it is nested too deeply"),
    ({CONFIG: f'{{"x": {DEEP}, "chat_template": "x"}}', JINJA: "own"}, CONFIG, "nested too deeply"),
    ({CONFIG: b'{"chat_template": "\xff"}'}, CONFIG, "it is not UTF-8 (byte 19)"),
    ({CONFIG: "{"}, CONFIG, "it is not JSON: Expecting property name"),
    ({CONFIG: "[]"}, CONFIG, "it holds a list; it must hold an object"),
    ({CONFIG: "7" * 5000}, CONFIG, "it is not JSON: Exceeds the limit"),
]


@pytest.mark.parametrize(("files", "file", "words"), UNUSABLE)
async def test_an_unusable_file_is_warned_of_and_chats_are_refused_with_the_same_words(
    files: dict[str, object], file: str, words: str, tmp_path: Path, caplog: Any
) -> None:
    write(tmp_path, files)
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None
    await template.start()
    with pytest.raises(QuireError) as raised:
        await template.render([{"role": "user", "content": "hello"}])
    await template.close()
    refusal = raised.value
    assert template.is_broken
    [record] = caplog.records
    told = record.getMessage()
    start = f"{tmp_path / file} cannot be used, so chats will be refused: "
    assert record.levelno == logging.WARNING
    assert told.startswith(start)
    assert words in told
    assert refusal.code is ErrorCode.NO_CHAT_TEMPLATE
    assert f"{Path(file).name}: {told.removeprefix(start)}" in refusal.message
    assert str(tmp_path) not in refusal.message


def test_a_file_that_leads_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a template")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / JINJA).symlink_to(tmp_path / "secret")
    found = find_template(folder)
    assert found is not None
    assert found == FoundTemplate("", JINJA, problem="is a link that leads outside the folder")
    (folder / JINJA).unlink()
    (folder / JINJA).symlink_to(tmp_path / "nothing")
    found = find_template(folder)
    assert found is not None
    assert found.problem is not None

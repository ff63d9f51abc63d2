"""Where a checkpoint folder keeps its chat template.

Read as transformers reads it. A file that cannot be used does not stop the start, because
completions need no template: it becomes the ``problem`` of what was found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weights.checkpoint.folder import inside
from weights.errors import CheckpointError

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
CONFIG_FILE = "tokenizer_config.json"
_TOOLS = "tool_use"
MAX_TEMPLATE_BYTES = 1 << 20
MAX_JSON_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class FoundTemplate:
    """A folder's template. ``file`` is where it is from, below the folder. ``problem`` says why it
    cannot be used, and what to do. ``for_tools`` is the one named "tool_use", which takes its place
    in a chat with tools."""

    source: str
    file: str
    problem: str | None = None
    for_tools: FoundTemplate | None = None


class _Unusable(Exception):
    """A file from which no template can be had."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(problem)
        self.file = file


def find_template(folder: Path) -> FoundTemplate | None:
    """The template for chats, and the one for chats with tools; None where the folder has none.

    The template's own files go before tokenizer_config.json's entry, and of several the one named
    "default" is taken. A tokenizer_config.json that cannot be read makes any template unusable:
    the special tokens that it would write are not known.
    """
    for_tools = None
    try:
        entry = _object(folder, CONFIG_FILE).get("chat_template")
        for_tools = _for_tools(folder, entry)
        found = _own_file(folder) or _configured(entry)
        if found is None:
            return None
        source, file = found
        if not source.strip():
            raise _Unusable(file, "the template is empty; fill it or remove it")
    except _Unusable as fault:
        return FoundTemplate("", fault.file, problem=str(fault), for_tools=for_tools)
    return FoundTemplate(source, file, for_tools=for_tools)


def _own_names(folder: Path) -> list[str]:
    """The files that hold nothing but a template; tokenizer_config.json's entry counts only where
    there are none."""
    names = [TEMPLATE_FILE] if _is_there(folder / TEMPLATE_FILE) else []
    if (folder / TEMPLATE_FOLDER).is_dir():
        names += sorted(
            f"{TEMPLATE_FOLDER}/{path.name}" for path in (folder / TEMPLATE_FOLDER).glob("*.jinja")
        )
    return names


def _for_tools(folder: Path, entry: object) -> FoundTemplate | None:
    names, file = _own_names(folder), f"{TEMPLATE_FOLDER}/{_TOOLS}.jinja"
    if file in names:
        try:
            return FoundTemplate(_text(folder, file, MAX_TEMPLATE_BYTES), file)
        except _Unusable as fault:
            return FoundTemplate("", file, problem=str(fault))
    if names or not isinstance(entry, (list, dict)):
        return None
    source = (entry if isinstance(entry, dict) else _by_name(entry)).get(_TOOLS)
    return FoundTemplate(source, CONFIG_FILE) if isinstance(source, str) else None


def _own_file(folder: Path) -> tuple[str, str] | None:
    """The template that lies in a file of its own, and the file's name."""
    names = _own_names(folder)
    if not names:
        return None
    # transformers reads the folder last.
    for name in (f"{TEMPLATE_FOLDER}/default.jinja", TEMPLATE_FILE):
        if name in names:
            return _text(folder, name, MAX_TEMPLATE_BYTES), name
    raise _Unusable(
        TEMPLATE_FOLDER,
        f'no template in it is named "default"; put the one for chats into {TEMPLATE_FILE}',
    )


def _configured(entry: object) -> tuple[str, str] | None:
    """tokenizer_config.json's template: text, or several by name as a list or an object."""
    if entry is None:
        return None
    if isinstance(entry, str):
        return entry, CONFIG_FILE
    if not isinstance(entry, (list, dict)):
        kind = type(entry).__name__
        raise _Unusable(
            CONFIG_FILE, f"chat_template is a {kind}; it must be text or a list of named templates"
        )
    named = entry if isinstance(entry, dict) else _by_name(entry)
    source = named.get("default")
    if not isinstance(source, str):
        kind = "an object" if isinstance(entry, dict) else "a list"
        raise _Unusable(
            CONFIG_FILE,
            f'chat_template is {kind} without a template named "default"; '
            "name the one for chats so, or give its text alone",
        )
    return source, CONFIG_FILE


def _by_name(entries: list[Any]) -> dict[str, Any]:
    """Of two with one name the last counts, as in transformers."""
    return {
        entry["name"]: entry.get("template")
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }


def _object(folder: Path, file: str) -> Mapping[str, Any]:
    """The object in a JSON file; an empty one where there is no such file."""
    if not _is_there(folder / file):
        return {}
    try:
        value = json.loads(_text(folder, file, MAX_JSON_BYTES))
    except RecursionError:
        raise _Unusable(file, "it is nested too deeply; take the original file") from None
    except ValueError as error:
        raise _Unusable(file, f"it is not JSON: {str(error)[:200]}; correct it") from None
    if not isinstance(value, dict):
        raise _Unusable(file, f"it holds a {type(value).__name__}; it must hold an object")
    return value


def _text(folder: Path, file: str, most: int) -> str:
    try:
        path = inside(folder, file)
        size = path.stat().st_size
        if size > most:
            raise _Unusable(file, f"it has {size} bytes; at most {most} are read")
        return path.read_bytes().decode("utf-8")
    except CheckpointError as error:
        raise _Unusable(file, str(error).removeprefix(f"{file}: ")) from None
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8 (byte {error.start}); save it as UTF-8"
        raise _Unusable(file, problem) from None
    except OSError as error:
        raise _Unusable(file, f"it cannot be read: {error.strerror or error}") from None


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()

"""What a checkpoint folder says about its chat template: the text, and the special tokens by name.

Read as transformers reads it. A file that cannot be used is no reason not to start, because
completions need no template: it becomes the ``problem`` of what was found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weights.checkpoint import inside
from weights.errors import CheckpointError

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
MAX_TEMPLATE_BYTES = 1 << 20
MAX_JSON_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class FoundTemplate:
    """A folder's template. ``file`` is where it is from, below the folder; ``tokens`` are the
    special tokens that it may write. ``problem`` says why it cannot be used, and what to do."""

    source: str
    file: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None


class _Unusable(Exception):
    """A file from which no template can be had."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(problem)
        self.file = file


def find_template(folder: Path) -> FoundTemplate | None:
    """The template for chats without tools; None where the folder has none.

    The template's own files go before tokenizer_config.json's entry, and of several the one named
    "default" is taken.
    """
    try:
        config = _object(folder, CONFIG_FILE)
        found = _own_file(folder) or _configured(config.get("chat_template"))
        if found is None:
            return None
        source, file = found
        if not source.strip():
            raise _Unusable(file, "the template is empty; fill it or remove it")
        # transformers does not read the older file where the newer says it all.
        newer = "added_tokens_decoder" in config
        tokens = named_tokens(config, {} if newer else _object(folder, SPECIAL_TOKENS_FILE))
    except _Unusable as fault:
        return FoundTemplate("", fault.file, problem=str(fault))
    return FoundTemplate(source, file, tokens)


def named_tokens(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by the names that templates know them by.

    ``config`` is tokenizer_config.json, ``special`` special_tokens_map.json, which goes before it.
    Beside the seven usual names these are every other key that ends in "_token", and the keys of
    an object of extra tokens. A list of extra tokens has no names.
    """
    found: dict[str, str] = {}
    for file, values in ((CONFIG_FILE, config), (SPECIAL_TOKENS_FILE, special)):
        extra = values.get("extra_special_tokens")
        more = dict(extra) if isinstance(extra, dict) else {}
        own = {key: value for key, value in values.items() if _names_a_token(key, value)}
        if not (own.keys() - set(SPECIAL_TOKENS)) and not more:
            kept = values.get("model_specific_special_tokens")  # as transformers 5 saves them
            more = dict(kept) if isinstance(kept, dict) else {}
        for name, value in {**own, **more}.items():
            text = value.get("content") if isinstance(value, dict) else value
            if text is None and not isinstance(value, dict):
                found.pop(name, None)
            elif isinstance(text, str):
                found[name] = text
            else:
                raise _Unusable(file, f"{name} is no text; give the token as text")
    return found


def _names_a_token(key: str, value: object) -> bool:
    """Whether a key holds a token. add_bos_token and its like hold a switch."""
    return key in SPECIAL_TOKENS or (key.endswith("_token") and isinstance(value, (str, dict)))


def _own_file(folder: Path) -> tuple[str, str] | None:
    """The template that lies in a file of its own, and the file's name."""
    names = [TEMPLATE_FILE] if _is_there(folder / TEMPLATE_FILE) else []
    if (folder / TEMPLATE_FOLDER).is_dir():
        names += sorted(
            f"{TEMPLATE_FOLDER}/{path.name}" for path in (folder / TEMPLATE_FOLDER).glob("*.jinja")
        )
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

"""The special and added tokens of a folder that stand outside tokenizer.json.

They may be named in tokenizer_config.json (bos_token and its like, extra_special_tokens, formerly
additional_special_tokens, added_tokens_decoder), special_tokens_map.json and added_tokens.json. The
precedence is transformers' (PreTrainedTokenizerBase._from_pretrained, 5.23): the last two files
count only where tokenizer_config.json has no added_tokens_decoder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from server.errors import StartupError
from server.text.tokenizer_recipes import Token
from weights.checkpoint.folder import inside
from weights.errors import CheckpointError
from weights.strict_json import parse_object, shown

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_EXTRA, _ADDITIONAL, _OF_MODEL = (
    "extra_special_tokens",
    "additional_special_tokens",
    "model_specific_special_tokens",
)
MAX_FILE_BYTES = 16 << 20
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class AddedAt:
    """An added token, its id and the file that says so."""

    id: int
    token: AddedToken
    file: str


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What the files say: tokens by name, in the order in which they are added; more special
    tokens without a name; added tokens with an id, rising."""

    named: Mapping[str, Token]
    extra: Sequence[str | AddedToken]
    added: Sequence[AddedAt]


def read_special_tokens(
    folder: Path,
    options: Mapping[str, Any],
    of_tokenizer_json: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, str | None],
) -> SpecialTokens:
    """Every special and added token of the folder.

    ``options`` is tokenizer_config.json, ``of_tokenizer_json`` the "added_tokens" of
    tokenizer.json, ``defaults`` what names mean where no file has them.

    Raises:
        StartupError: a file or a key is not what it should be; names it.
    """
    said = dict(options)
    if _ADDITIONAL in said and not said.get(_EXTRA):
        said[_EXTRA] = said.pop(_ADDITIONAL)
    _gather_tokens_of_the_model(said)
    if "added_tokens_decoder" in said:
        added = _decoder_tokens(said["added_tokens_decoder"])
    else:
        added = _legacy_tokens(folder, said, of_tokenizer_json)
    by_content = {str(one.token): one.token for one in added.values()}
    for name, default in defaults.items():
        said.setdefault(name, default)
    named: dict[str, Token] = {}
    for name in NAMES:
        token = _token(said.get(name), f"{CONFIG_FILE}: {name}")
        named[name] = None if token is None else by_content.get(str(token), token)
    for name, value in _names_of_the_model(said).items():
        named[name] = _token(value, f"{CONFIG_FILE}: {name}")
    return SpecialTokens(named, _extra(said), sorted(added.values(), key=lambda one: one.id))


def _gather_tokens_of_the_model(said: dict[str, Any]) -> None:
    """Moves what is named by a key of the model's own (image_token) where it will be looked for."""
    found = {
        key: said.pop(key)
        for key in list(said)
        if key.endswith("_token") and key not in NAMES and isinstance(said[key], str)
    }
    if isinstance(said.get(_EXTRA), dict):
        found.update(said.pop(_EXTRA))
    if found:
        said[_OF_MODEL] = found


def _names_of_the_model(said: Mapping[str, Any]) -> dict[str, Any]:
    more = said.get(_OF_MODEL) or {}
    if not isinstance(more, dict):
        raise StartupError(f"{CONFIG_FILE}: {_OF_MODEL} must be an object")
    own = {
        key: value
        for key, value in said.items()
        if key.endswith("_token")
        and key not in NAMES
        and isinstance(value, str | dict | AddedToken)
    }
    return {**own, **more}


def _extra(said: Mapping[str, Any]) -> list[str | AddedToken]:
    given = said[_EXTRA] if _EXTRA in said else said.get(_ADDITIONAL)
    if given is not None and not isinstance(given, list):
        raise StartupError(f"{CONFIG_FILE}: {_EXTRA} must be a list of tokens")
    tokens = (_token(one, f"{CONFIG_FILE}: {_EXTRA}") for one in given or ())
    return [token for token in tokens if token is not None]


def _decoder_tokens(given: object) -> dict[int, AddedAt]:
    where = f"{CONFIG_FILE}: added_tokens_decoder"
    if not isinstance(given, dict):
        raise StartupError(f"{where} must be an object of tokens by id")
    added: dict[int, AddedAt] = {}
    for key, value in given.items():
        if not key.isascii() or not key.isdigit() or not isinstance(value, dict):
            raise StartupError(f"{where}: {shown(key)} is not a token id")
        added[int(key)] = AddedAt(int(key), _added(value, where), where)
    return added


def _legacy_tokens(
    folder: Path, said: dict[str, Any], of_tokenizer_json: Sequence[Mapping[str, Any]]
) -> dict[int, AddedAt]:
    """The older files. ``said`` takes what special_tokens_map.json names."""
    for key, value in _read(folder, MAP_FILE).items():
        said[key] = _of_map(key, value, said)
    if isinstance(said.get(_EXTRA), dict):
        said[_OF_MODEL] = {**(said.get(_OF_MODEL) or {}), **said.pop(_EXTRA)}
    special = {str(said[name]) for name in NAMES if said.get(name)}
    special.update(str(token) for token in said.get(_EXTRA) or ())
    added: dict[int, AddedAt] = {}
    for content, index in _read(folder, ADDED_FILE).items():
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise StartupError(f"{ADDED_FILE}: {shown(content)} must have an id, not {index!r}")
        is_special = content in special
        token = AddedToken(content, normalized=not is_special, special=is_special)
        added[index] = AddedAt(index, token, ADDED_FILE)
    for one in of_tokenizer_json:
        index = one["id"]
        added[index] = AddedAt(index, _added(one, "tokenizer.json"), "tokenizer.json")
    return added


def _of_map(key: str, value: Any, said: Mapping[str, Any]) -> Any:
    """One entry of special_tokens_map.json as it takes its place among the options."""
    where = f"{MAP_FILE}: {shown(key)}"
    if key == _EXTRA and isinstance(value, list):
        tokens = list(said.get(_EXTRA) or ())
        for one in value:
            token = _special(one, where) if isinstance(one, dict) else one
            if token not in tokens:
                tokens.append(token)
        return tokens
    return _special(value, where) if isinstance(value, dict) and key != _EXTRA else value


def _special(value: Mapping[str, Any], where: str) -> AddedToken:
    return _added({**value, "special": True}, where)


def _token(value: object, where: str) -> Token:
    """A token as a file writes it: text, or an object (with "__type" as transformers saves it;
    without, it is a special token)."""
    if value is None or isinstance(value, str | AddedToken):
        return value
    if isinstance(value, dict):
        return _added(value, where) if "__type" in value else _special(value, where)
    raise StartupError(f"{where} must be text or an object with its content, not {value!r}")


def _added(value: Mapping[str, Any], where: str) -> AddedToken:
    content = value.get("content")
    flags = {flag: value[flag] for flag in _FLAGS if flag in value}
    if not isinstance(content, str) or not all(isinstance(on, bool) for on in flags.values()):
        raise StartupError(
            f"{where}: a token is an object with its content and true or false flags"
        )
    return AddedToken(content, **flags)


def _read(folder: Path, file: str) -> dict[str, Any]:
    """The object in a file of the folder; {} where there is none."""
    try:
        if not os.path.lexists(folder / file):
            return {}
        path = inside(folder, file)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise StartupError(f"{file} is above {MAX_FILE_BYTES} bytes, more than any tokens take")
        return parse_object(path.read_bytes(), file)
    except CheckpointError as error:
        raise StartupError(str(error)) from None

"""A checkpoint folder's tokenizer, made from all of its files as transformers makes it.

tokenizer.json or a vocabulary (vocabulary_files.py) is the trunk; tokenizer_config.json says which
class it is of and, with special_tokens_map.json and added_tokens.json, which tokens are added.
add_bos_token and add_eos_token decide nothing where there is a tokenizer.json: its post-processor
does.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from server.errors import StartupError
from server.text.sentencepiece_tokenizer import symbols, with_names_of_added_tokens
from server.text.special_tokens import (
    CONFIG_FILE,
    MAX_FILE_BYTES,
    SpecialTokens,
    read_special_tokens,
)
from server.text.tekken import TEKKEN_FILE
from server.text.tokenizer_classes import class_of_folder
from server.text.tokenizer_conversion import (
    add_ends,
    check_model_knows,
    convert,
    warn_of_no_first_token,
)
from server.text.tokenizer_recipes import RECIPES, Recipe
from server.text.vocabulary_files import TOKENIZER_FILE, Trunk, find_trunk
from weights.checkpoint.folder import inside
from weights.errors import CheckpointError

log = logging.getLogger("quire.server")

_PROBES = ("Hello  world", " 12345 ab\n\n", "naïve 深度 x_1", "don't", "a\tb", "It's 3.14!")
_OF_BPE_ALL_THE_SAME = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


@dataclass(frozen=True, slots=True)
class FolderTokenizer:
    """``cleans_up``: decoded text is closed up before punctuation, as BERT's is. ``named`` are the
    special tokens by the names that a chat template knows them by."""

    backend: tokenizers.Tokenizer
    cleans_up: bool
    named: Mapping[str, str]


def load_folder(
    folder: Path, config: Mapping[str, Any], vocab_size: int | None = None
) -> FolderTokenizer:
    """The tokenizer of ``folder``, whose config.json is ``config`` and whose model has
    ``vocab_size`` tokens.

    Raises:
        StartupError: a file or a key cannot be used or followed; names it. The library's own
            errors, which may be bare Exceptions, come through.
    """
    started = time.monotonic()
    options = _options(folder)
    trunk = find_trunk(folder)
    is_converted = trunk.file != TOKENIZER_FILE
    if trunk.model is not None:
        trunk = replace(trunk, model=with_names_of_added_tokens(trunk.model, options))
    name = class_of_folder(
        config,
        options,
        is_byte_level=trunk.is_byte_level,
        file=trunk.file,
        says_all=trunk.pipeline is not None or trunk.model is not None,
    )
    if trunk.file == TEKKEN_FILE:
        name = None  # the file says all of it
    recipe = None if name is None else RECIPES[name]
    padding = None if trunk.pipeline is None else trunk.pipeline.padding
    special = _special_tokens(folder, options, trunk, recipe, padding)
    for key in recipe.flags if recipe is not None else ("add_prefix_space", "legacy"):
        _flag(options, key)
    if is_converted:
        check_model_knows(trunk, vocab_size)
    if trunk.pipeline is None:
        backend = convert(folder, trunk, name, options, special.named)
    elif name is None or recipe is None:
        backend = trunk.pipeline
    else:
        backend = recipe.build(trunk.read(), options, special.named)
        _warn_of_other_tokens(name, backend, trunk.pipeline)
        if trunk.pipeline.post_processor is not None and not recipe.drops_post_processor:
            backend.post_processor = trunk.pipeline.post_processor
    _add_tokens(backend, special)
    if is_converted:
        first, last = _flag(options, "add_bos_token"), _flag(options, "add_eos_token")
        add_ends(backend, special.named, first=first, last=last)
        if trunk.named and options.get("add_bos_token") is None:
            warn_of_no_first_token(special.named)
    if recipe is not None and recipe.finish is not None:
        texts = [str(token) for token in (*special.named.values(), *special.extra) if token]
        recipe.finish(backend, special.named, list(dict.fromkeys(texts)))
    backend.encode_special_tokens = _flag(options, "split_special_tokens")
    _check_ids(backend, special, trunk)
    is_bpe = type(backend.model).__name__ == "BPE"
    cleans_up = _flag(options, "clean_up_tokenization_spaces") and (
        not is_bpe or _flag(options, _OF_BPE_ALL_THE_SAME)
    )
    named = {name: str(token) for name, token in special.named.items() if token is not None}
    if is_converted:
        made = name or "the file says"
        log.info(
            "tokenizer: %s converted as %s in %.2f s", trunk.file, made, time.monotonic() - started
        )
    return FolderTokenizer(backend, cleans_up, named)


def _options(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; {} with a warning where it cannot be read: tokenizer.json may do."""
    path = folder / CONFIG_FILE
    if not os.path.lexists(path):
        return {}
    try:
        if inside(folder, CONFIG_FILE).stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"it is above {MAX_FILE_BYTES} bytes")
        options = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError, CheckpointError) as error:
        log.warning("%s cannot be read; its special tokens are ignored: %s", path, error)
        return {}
    if not isinstance(options, dict):
        log.warning("%s is not a JSON object; its special tokens are ignored", path)
        return {}
    for key in ("init_inputs", "fast_tokenizer_files"):
        if options.get(key) not in (None, [], [TOKENIZER_FILE]):
            raise StartupError(f"{CONFIG_FILE}: {key} {options[key]!r} is not followed; remove it")
    if options.get("fix_mistral_regex"):
        raise StartupError(
            f"{CONFIG_FILE}: fix_mistral_regex is not followed: load the folder with transformers, "
            "which follows it, save the tokenizer and remove the key"
        )
    return options


def _flag(options: Mapping[str, Any], key: str) -> bool:
    value = options.get(key)
    if value is not None and not isinstance(value, bool):
        raise StartupError(f"{CONFIG_FILE}: {key} must be true or false, not {value!r}")
    return bool(value)


def _special_tokens(
    folder: Path,
    options: Mapping[str, Any],
    trunk: Trunk,
    recipe: Recipe | None,
    padding: Mapping[str, Any] | None,
) -> SpecialTokens:
    defaults = dict(trunk.named if recipe is None else recipe.defaults)
    if padding is not None:
        defaults.setdefault("pad_token", padding["pad_token"])
    special = read_special_tokens(folder, options, trunk.added, defaults)
    if trunk.model is None:
        return special
    return replace(special, extra=[*special.extra, *symbols(trunk.model)])


def _add_tokens(backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
    """Adds what the backend lacks, and gives what it has the files' flags: transformers' order."""
    tokens: list[str | AddedToken] = [one.token for one in special.added]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    known.update(str(token) for token in tokens)
    for token in (*special.named.values(), *special.extra):
        if token is not None and str(token) not in known and token not in tokens:
            tokens.append(token)
    names = {str(token) for token in special.named.values() if token}
    for index, token in enumerate(tokens):
        if isinstance(token, str):
            tokens[index] = AddedToken(token, special=True)
        elif not token.special and str(token) in names:
            token.special = True
    backend.add_tokens(tokens)


def _check_ids(backend: tokenizers.Tokenizer, special: SpecialTokens, trunk: Trunk) -> None:
    """An id is given by order, not by what a file says: where they differ, the model would read
    one token for another."""
    said = [(one.id, one.token.content, one.file) for one in special.added]
    said += [(one["id"], one["content"], TOKENIZER_FILE) for one in trunk.added]
    for id, content, file in said:
        found = backend.token_to_id(content)
        if content and found is None:
            raise StartupError(
                f"{file}: the token {content!r} with the id {id} is lost: the folder's "
                f"tokenizer_class takes no added tokens from {TOKENIZER_FILE}, in transformers as "
                f"here, and {CONFIG_FILE}: added_tokens_decoder lacks it. Add it there, or set "
                'tokenizer_class to "PreTrainedTokenizerFast" to follow the file'
            )
        if content and found != id:
            raise StartupError(
                f"{file}: the token {content!r} has the id {id}, but with the folder's "
                f"{trunk.file} it gets {found}: one of the two files is another model's"
            )


def _warn_of_other_tokens(
    name: str, backend: tokenizers.Tokenizer, from_file: tokenizers.Tokenizer
) -> None:
    for probe in _PROBES:
        theirs = from_file.encode(probe, add_special_tokens=False).tokens
        ours = backend.encode(probe, add_special_tokens=False).tokens
        if ours != theirs:
            log.warning(
                "%s of this folder splits %r into %s; tokenizer_class %s, which counts as in "
                "transformers, into %s. To follow the file, set tokenizer_class to "
                '"PreTrainedTokenizerFast" in %s',
                TOKENIZER_FILE, probe, theirs, name, ours, CONFIG_FILE,
            )  # fmt: skip
            return

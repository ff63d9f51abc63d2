"""A tokenizer out of a folder that has no tokenizer.json: its class and its vocabulary make it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import decoders, processors

from server.errors import StartupError
from server.text.stages import byte_of_character
from server.text.tokenizer_recipes import RECIPES, VOCAB_FILE, Named, Options, Token
from server.text.vocabulary_files import TOKENIZER_FILE, Trunk, command

log = logging.getLogger("quire.server")

CONFIG_FILE = "tokenizer_config.json"


def convert(
    folder: Path, trunk: Trunk, name: str | None, options: Options, named: Named
) -> tokenizers.Tokenizer:
    """The tokenizer that the class ``name`` (a key of RECIPES) makes of the trunk's vocabulary.

    Raises:
        StartupError: no class is known, or one that is made of other files.
    """
    recipe = None if name is None else RECIPES[name]
    if recipe is None or recipe.vocabulary != VOCAB_FILE:
        served = ", ".join(key for key, one in RECIPES.items() if one.vocabulary == VOCAB_FILE)
        told = f"{name} is not made of them" if recipe is not None else "they do not tell the class"
        raise StartupError(
            f"{TOKENIZER_FILE} is missing from {folder.name}; of {trunk.file} a tokenizer is made "
            f"by class, and {told}: set tokenizer_class in {CONFIG_FILE} to the model's, one of "
            f"{served}; or make {TOKENIZER_FILE} on a machine with transformers: {command(folder)}"
        )
    vocabulary = trunk.read()
    try:
        backend = recipe.build(vocabulary, options, named)
    except Exception as error:  # the library's, which may be bare Exceptions
        raise StartupError(f"{trunk.file} cannot be used: {error}") from error
    if isinstance(backend.decoder, decoders.ByteLevel):
        missing = sum(character not in vocabulary.pieces for character in byte_of_character())
        if missing:
            log.warning(
                "%s: %d of the 256 bytes have no token; a text that has them loses them, in "
                "transformers as here", VOCAB_FILE, missing,
            )  # fmt: skip
    return backend


def check_model_knows(pieces: Mapping[str, int], file: str, vocab_size: int | None) -> None:
    """Raises StartupError for a piece whose id is beyond the model's vocabulary: any text might
    have it."""
    piece, id = max(pieces.items(), key=lambda entry: entry[1])
    if vocab_size is not None and id >= vocab_size:
        raise StartupError(
            f"{file}: {piece!r} has the id {id}, but the model's vocabulary has {vocab_size} "
            "tokens: the files are another model's"
        )


def add_ends(backend: tokenizers.Tokenizer, first: Token, last: Token) -> None:
    """Puts ``first`` before each text and ``last`` behind it; both are tokens of the backend."""
    ends = [str(token) for token in (first, last) if token is not None]
    before = [] if first is None else [str(first)]
    after = [] if last is None else [str(last)]
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(ends)],
    )

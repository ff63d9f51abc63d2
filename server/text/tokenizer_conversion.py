"""A tokenizer out of a folder that has no tokenizer.json: its class and its vocabulary make it."""

from __future__ import annotations

import logging
from pathlib import Path

import tokenizers
from tokenizers import decoders, processors

from server.errors import StartupError
from server.text.sentencepiece_tokenizer import sentencepiece_tokenizer
from server.text.stages import byte_of_character
from server.text.tokenizer_recipes import (
    RECIPES,
    SENTENCEPIECE_FILE,
    VOCAB_FILE,
    Named,
    Options,
    Vocabulary,
)
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
    kind = VOCAB_FILE if trunk.model is None else SENTENCEPIECE_FILE
    if (recipe.vocabulary != kind) if recipe else (trunk.model is None):
        served = ", ".join(key for key, one in RECIPES.items() if one.vocabulary == kind)
        told = f"{name} is made of other files" if recipe else "no class is told"
        raise StartupError(
            f"{TOKENIZER_FILE} is missing from {folder.name}; of {trunk.file} a tokenizer is made "
            f"by class, and {told}: set tokenizer_class in {CONFIG_FILE} to the model's, one of "
            f"{served}; or make {TOKENIZER_FILE} on a machine with transformers: {command(folder)}"
        )
    try:
        if trunk.model is not None:
            return sentencepiece_tokenizer(trunk.model, name, options, named, trunk.file)
        return _of_vocabulary(trunk.read(), str(name), options, named)
    except Exception as error:  # the library's, which may be bare Exceptions
        raise StartupError(f"{trunk.file} cannot be used: {error}") from error


def _of_vocabulary(
    vocabulary: Vocabulary, name: str, options: Options, named: Named
) -> tokenizers.Tokenizer:
    backend = RECIPES[name].build(vocabulary, options, named)
    if isinstance(backend.decoder, decoders.ByteLevel):
        missing = sum(character not in vocabulary.pieces for character in byte_of_character())
        if missing:
            log.warning(
                "%s: %d of the 256 bytes have no token; a text that has them loses them, in "
                "transformers as here", VOCAB_FILE, missing,
            )  # fmt: skip
    return backend


def check_model_knows(trunk: Trunk, vocab_size: int | None) -> None:
    """Raises StartupError for a piece whose id is beyond the model's vocabulary: any text might
    have it."""
    piece, id = max(trunk.read().pieces.items(), key=lambda entry: entry[1])
    if vocab_size is not None and id >= vocab_size:
        raise StartupError(
            f"{trunk.file}: {piece!r} has the id {id}, but the model's vocabulary has "
            f"{vocab_size} tokens: the files are another model's"
        )


def add_ends(backend: tokenizers.Tokenizer, named: Named, *, first: bool, last: bool) -> None:
    """Puts bos_token before each text and eos_token behind it; one that the folder does not name
    is left out."""
    before = [str(named["bos_token"])] if first and named["bos_token"] else []
    after = [str(named["eos_token"])] if last and named["eos_token"] else []
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(one, backend.token_to_id(one)) for one in dict.fromkeys(before + after)],
    )


def warn_of_no_first_token(named: Named) -> None:
    """For a folder that does not say add_bos_token, of a kind whose models mostly want it."""
    if named["bos_token"]:
        log.warning(
            "%s does not say add_bos_token: %r is not put before texts, in transformers as here. "
            "If the model was trained with it, set add_bos_token to true", CONFIG_FILE,
            str(named["bos_token"]),
        )  # fmt: skip

"""A tokenizer out of a SentencePiece model: what its own normalizer_spec says, or its class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from server.text.sentencepiece_model import PieceType, SentencePieceModel
from server.text.tokenizer_recipes import RECIPES, SPACE, Named, Options, Vocabulary
from weights.errors import CheckpointError

log = logging.getLogger("quire.server")

# Of the square of each piece's characters: what finding the merges costs. Gemma's are 18 million.
_MAX_MERGE_WORK = 400_000_000
# What the classes take for granted, whatever the model says.
_OF_CLASS = {"LlamaTokenizer": True, "CodeLlamaTokenizer": True, "GemmaTokenizer": False}


def sentencepiece_tokenizer(
    model: SentencePieceModel, name: str | None, options: Options, named: Named, file: str
) -> tokenizers.Tokenizer:
    """The tokenizer of ``model``, which the class ``name`` makes if it has one.

    The class is followed where it makes of text what the model says; else the model counts, with a
    warning: a class that takes a space before the text for granted would feed the model others.
    """
    if name is not None and _is_of_class(model, name):
        return RECIPES[name].build(Vocabulary(model.ids(), find_merges(model)), options, named)
    if name is not None:
        log.warning(
            "%s normalizes text otherwise than tokenizer_class %s does; the file counts", file, name
        )
    return _by_its_own_words(model, options)


def symbols(model: SentencePieceModel) -> list[AddedToken]:
    """The pieces that are found in a text before anything else; control symbols are special."""
    return [
        AddedToken(piece.text, normalized=False, special=piece.type is PieceType.CONTROL)
        for piece in model.pieces
        if piece.type in (PieceType.CONTROL, PieceType.USER_DEFINED)
    ]


def find_merges(model: SentencePieceModel) -> Sequence[tuple[str, str]]:
    """Each pair of pieces that makes a third, the third's of the highest score first, and of the
    lower id where scores are equal: SentencePiece keeps no merges, it joins by score."""
    usable = (PieceType.NORMAL, PieceType.USER_DEFINED)
    texts = {piece.text for piece in model.pieces if piece.type in usable}
    work = sum(len(text) ** 2 for text in texts)
    if work > _MAX_MERGE_WORK:
        raise CheckpointError(f"its pieces are too long to find their merges ({work} steps)")
    return [
        (piece.text[:place], piece.text[place:])
        for piece in sorted(model.pieces, key=lambda piece: -piece.score)
        if piece.text in texts
        for place in range(1, len(piece.text))
        if piece.text[:place] in texts and piece.text[place:] in texts
    ]


def _is_of_class(model: SentencePieceModel, name: str) -> bool:
    return (
        not model.is_unigram
        and model.byte_fallback
        and not model.charsmap
        and not model.remove_extra_whitespaces
        and model.add_dummy_prefix == _OF_CLASS[name]
    )


def with_names_of_added_tokens(model: SentencePieceModel, options: Options) -> SentencePieceModel:
    """``model`` with its pieces called as added_tokens_decoder calls them: published folders gave
    reserved pieces a use so."""
    pieces, texts = list(model.pieces), {piece.text for piece in model.pieces}
    given = options.get("added_tokens_decoder")
    for key, token in given.items() if isinstance(given, dict) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or content in texts or not key.isdecimal():
            continue
        if int(key) < len(pieces):
            pieces[int(key)] = replace(pieces[int(key)], text=content)
    return replace(model, pieces=tuple(pieces))


def _by_its_own_words(model: SentencePieceModel, options: Options) -> tokenizers.Tokenizer:
    if model.is_unigram:
        scored = [(piece.text, piece.score) for piece in model.pieces]
        backend = tokenizers.Tokenizer(
            models.Unigram(scored, unk_id=model.unk_id, byte_fallback=model.byte_fallback)
        )
    else:
        backend = tokenizers.Tokenizer(
            models.BPE(
                vocab=model.ids(),
                merges=list(find_merges(model)),
                unk_token=model.pieces[model.unk_id].text,
                fuse_unk=True,
                byte_fallback=model.byte_fallback,
            )
        )
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    given = options.get("add_prefix_space")
    prefixed = model.add_dummy_prefix if given is None else bool(given)
    if prefixed and _prefixes_once(model, options):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=SPACE, prepend_scheme="first", split=False
        )
    elif prefixed:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    spelled = [decoders.ByteFallback()] if model.byte_fallback else []
    strip = [decoders.Strip(content=" ", left=1)] if prefixed else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), *spelled, decoders.Fuse(), *strip]
    )
    return backend


def _prefixes_once(model: SentencePieceModel, options: Options) -> bool:
    """Whether only the text's beginning gets a space, and not what follows each added token too."""
    legacy = options.get("legacy")
    if legacy is not None:
        return not legacy
    return any(piece.type is PieceType.USER_DEFINED for piece in model.pieces)

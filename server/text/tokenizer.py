"""The checkpoint's own tokenizer: text to ids and back, checked, and off the event loop."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tokenizers

from server.errors import ErrorCode, QuireError, StartupError
from server.text.decoding import StreamDecoder, decoder_stages, token_text_bytes
from server.text.least_tokens import least_tokens
from server.text.tidying import TIDYING
from server.text.tokenizer_folder import load_folder
from server.text.vocabulary_files import TOKENIZER_FILE

ENCODE_THREADS = 2
_PANIC = "PanicException"  # of pyo3_runtime, which cannot be imported


class Tokenizer:
    """A folder's tokenizer, by the `tokenizers` library.

    ``vocab_size`` is the model's. It may be padded beyond the tokenizer's own: an id in the padding
    has no text. Or some tokens were added that the model was never given: a text that holds one is
    refused. ``threads`` are for encoding off the event loop. ``named_tokens`` are the special
    tokens by name, as chat templates write them.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        vocab_size: int | None = None,
        cleans_up: bool = False,
        named_tokens: Mapping[str, str] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.named_tokens = dict(named_tokens or {})
        self.vocab_size = vocab_size or backend.get_vocab_size(with_added_tokens=True)
        pipeline = json.loads(backend.to_str())
        self._stages = decoder_stages(pipeline.get("decoder"))
        self._least = least_tokens(pipeline, _normalized_contents(backend))
        self._tidying = TIDYING if cleans_up else ()
        self.special_ids = _special_ids(backend)
        self._exceeds_model = _largest_id(pipeline) >= self.vocab_size
        self._bytes: dict[int, bytes] = {}
        self.threads = ThreadPoolExecutor(ENCODE_THREADS, thread_name_prefix="tokenizer")

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        vocab_size: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> Tokenizer:
        """The tokenizer of a checkpoint folder, by all of its files. ``config`` is its config.json.

        Raises:
            StartupError: there is no tokenizer to be had, or a file cannot be used; names it.
        """
        try:
            loaded = load_folder(folder, config or {}, vocab_size)
            return cls(
                loaded.backend,
                vocab_size=vocab_size,
                cleans_up=loaded.cleans_up,
                named_tokens=loaded.named,
            )
        except (ValueError, OSError, RecursionError) as error:
            raise StartupError(f"{TOKENIZER_FILE} cannot be used: {error}") from error
        except Exception as error:  # the library raises a bare Exception for a malformed file
            if type(error) is not Exception:
                raise
            raise StartupError(f"{TOKENIZER_FILE} cannot be used: {error}") from error

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; special tokens as the tokenizer's post-processor adds them.

        Raises:
            QuireError: the text holds a lone surrogate, which no encoding can carry, or a token
                that the model does not know, or the library panics over it.
        """
        check_text(text)
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            # A panic of the library is no Exception, and would pass everything that answers one.
            if type(error).__name__ != _PANIC:
                raise
            raise QuireError(
                ErrorCode.INVALID_VALUE,
                "The model's tokenizer failed over this text, in a way that depends on the text "
                "alone. Change it or leave a part of it out.",
            ) from None
        if self._exceeds_model:
            self._check_known(ids)
        return ids

    def _check_known(self, ids: Sequence[int]) -> None:
        for token_id in ids:
            if token_id >= self.vocab_size:
                raise QuireError(
                    ErrorCode.INVALID_VALUE,
                    f"The text makes the token {self.piece(token_id)!r}, whose id {token_id} is "
                    f"beyond the model's vocabulary of {self.vocab_size}. Leave it out.",
                )

    @property
    def counts_ahead(self) -> bool:
        """Whether ``least_tokens`` tells anything of a text."""
        return self._least is not None

    def least_tokens(self, text: str) -> int:
        """No fewer tokens than this can carry ``text``: a cheap refusal of hopeless prompts. 0 for
        every text where the tokenizer may make few tokens of any length."""
        return 0 if self._least is None else self._least.of(text)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The whole text of ``ids``, a sequence that is not UTF-8 replaced by U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        for tidy in self._tidying:
            text = text.replace(tidy.pattern, tidy.content)
        return text

    def stream(self, *, continuation: bool = False) -> StreamDecoder:
        """A decoder to be fed pieces one by one. ``continuation``: text stands before it."""
        return StreamDecoder((*self._stages, *self._tidying), continuation=continuation)

    def piece(self, token_id: int) -> str | None:
        """The vocabulary's spelling of a token; None for an id in the padding."""
        piece: str | None = self._backend.id_to_token(token_id)
        return piece

    def text_piece(self, token_id: int) -> str | None:
        """As ``piece``, but None for special tokens too: they are no part of a text."""
        return None if token_id in self.special_ids else self.piece(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for in the middle of a text; b"" in the padding."""
        found = self._bytes.get(token_id)
        if found is None:
            piece = self.piece(token_id)
            found = b"" if piece is None else token_text_bytes(self._stages, piece)
            self._bytes[token_id] = found
        return found

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)


def _normalized_contents(backend: tokenizers.Tokenizer) -> list[str]:
    """The added tokens as they are looked for behind the normalizer."""
    normalizer = backend.normalizer
    if normalizer is None:
        return []
    added = backend.get_added_tokens_decoder().values()
    return [normalizer.normalize_str(token.content) for token in added]


def _largest_id(pipeline: Mapping[str, Any]) -> int:
    """Of a tokenizer.json: its model's pieces and added tokens. To ask the library for them all
    takes 0.2 s of a large vocabulary."""
    vocabulary = pipeline["model"]["vocab"]  # Unigram's is a list in the order of ids
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = (token["id"] for token in pipeline.get("added_tokens") or ())
    return max((*ids, *added), default=0)


def _special_ids(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """The ids that decoding skips: to the library a token that was ever added as special stays so,
    though its flag may say otherwise by now."""
    return frozenset(
        id
        for id, token in backend.get_added_tokens_decoder().items()
        if token.special or backend.decode([id]) != backend.decode([id], skip_special_tokens=False)
    )


def check_text(text: str, param: str | None = None) -> None:
    """Raises QuireError where ``text`` holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QuireError(
            ErrorCode.INVALID_VALUE,
            f"The text holds a lone surrogate at character {error.start}: "
            "it is not valid Unicode. Send the whole character.",
            param=param,
        ) from None

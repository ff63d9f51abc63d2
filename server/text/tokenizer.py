"""The checkpoint's own tokenizer: text to ids and back, checked, and off the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tokenizers

from server.errors import ErrorCode, QuireError, StartupError
from server.text.decoding import StreamDecoder, decoder_stages, token_text_bytes

ENCODE_THREADS = 2


class Tokenizer:
    """A tokenizer.json, by the `tokenizers` library.

    ``vocab_size`` is the model's, which may be padded beyond the tokenizer's own: an id in the
    padding has no text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        vocab_size: int | None = None,
        eos_token_ids: tuple[int, ...] = (),
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.vocab_size = vocab_size or backend.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids = eos_token_ids
        self._stages = decoder_stages(json.loads(backend.to_str()).get("decoder"))
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self._longest_token_bytes = max(
            (len(token.encode()) for token in backend.get_vocab(with_added_tokens=True)), default=1
        )
        self._bytes: dict[int, bytes] = {}
        self._threads = ThreadPoolExecutor(ENCODE_THREADS, thread_name_prefix="tokenizer")

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        vocab_size: int | None = None,
        config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> Tokenizer:
        """The tokenizer of a checkpoint folder. EOS ids come from both configurations.

        Raises:
            StartupError: there is no tokenizer.json, or it cannot be used; names the file.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise StartupError(f"tokenizer.json is missing from {folder.name}")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
            ids = eos_token_ids(config or {}, generation_config or {})
            return cls(backend, vocab_size=vocab_size, eos_token_ids=ids)
        except (ValueError, OSError) as error:
            raise StartupError(f"tokenizer.json cannot be used: {error}") from error
        except Exception as error:  # the library raises a bare Exception for a malformed file
            if type(error) is not Exception:
                raise
            raise StartupError(f"tokenizer.json cannot be used: {error}") from error

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; special tokens as the tokenizer's post-processor adds them.

        Raises:
            QuireError: the text holds a lone surrogate, which no encoding can carry.
        """
        check_text(text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    async def encode_in_thread(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """As ``encode``, without holding the event loop. Cancelling abandons the result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, lambda: self.encode(text, add_special_tokens=add_special_tokens)
        )

    def least_tokens(self, text: str) -> int:
        """No fewer tokens than this can carry ``text``: a cheap refusal of hopeless prompts."""
        return len(text) // max(1, self._longest_token_bytes)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The whole text of ``ids``, a sequence that is not UTF-8 replaced by U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def stream(self, *, continuation: bool = False) -> StreamDecoder:
        """A decoder to be fed pieces one by one. ``continuation``: text stands before it."""
        return StreamDecoder(self._stages, continuation=continuation)

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
        self._threads.shutdown(wait=False, cancel_futures=True)


def check_text(text: str, param: str | None = None) -> None:
    """Raises QuireError where ``text`` holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QuireError(
            ErrorCode.INVALID_VALUE,
            f"The text holds a lone surrogate at character {error.start}: "
            "it is no valid Unicode. Send the whole character.",
            param=param,
        ) from None


def eos_token_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """The end-of-sequence ids that both configurations name, each an integer or a list.

    Raises:
        ValueError: a value is neither.
    """
    found: list[int] = []
    for source in (generation, config):
        value = source.get("eos_token_id")
        for id in value if isinstance(value, list) else [value]:
            if id is None or id in found:
                continue
            if isinstance(id, bool) or not isinstance(id, int) or id < 0:
                raise ValueError(f"eos_token_id holds {id!r}, which is no token id")
            found.append(id)
    return tuple(found)

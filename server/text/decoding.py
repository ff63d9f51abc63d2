"""Token pieces to text, one at a time, equal to the tokenizer's decoding of the whole.

A tokenizer.json names its decoder as one stage or a sequence of them; pieces run through them:

    pieces -> [replace] -> [byte fallback: holds a run of bytes] -> [fuse, strip] -> text

so a token costs a constant amount of work, and a character that is not complete is never seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.text.stages import (
    BYTE_PIECE,
    ByteFallback,
    ByteLevel,
    Fuse,
    Replace,
    Segment,
    StageSpec,
    StripPieces,
    StripText,
    byte_level_bytes,
)
from server.text.word_stages import Metaspace, Spaced, WordEnds, WordPiece


def decoder_stages(decoder: Mapping[str, Any] | None) -> tuple[StageSpec, ...]:
    """The streaming stages of a tokenizer.json's "decoder".

    Raises:
        ValueError: a stage is of a kind that cannot be streamed; names it.
    """
    if decoder is None:
        return (Spaced(),)
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    stages: list[StageSpec] = []
    fused = False
    for part in parts:
        stages.append(_stage(part, fused=fused))
        fused = fused or part["type"] in ("Fuse", "ByteLevel")
    return tuple(stages)


def _stage(part: Mapping[str, Any], *, fused: bool) -> StageSpec:
    match part:
        case {"type": "ByteLevel"} if not fused:
            return ByteLevel
        case {"type": "ByteFallback"} if not fused:
            return ByteFallback
        case {"type": "Fuse"}:
            return Fuse
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            if not fused or len(pattern) == 1:
                return Replace(pattern, content)
        case {"type": "Strip", "content": str(content), "start": int(head), "stop": int(tail)}:
            return StripText(content, head, tail) if fused else StripPieces(content, head, tail)
        case {"type": "Metaspace", "replacement": str(replacement)} if not fused:
            return Metaspace(replacement, part.get("prepend_scheme", "always") != "never")
        case {"type": "WordPiece", "prefix": str(prefix)} if not fused:
            return WordPiece(prefix, bool(part.get("cleanup", True)))
        case {"type": "BPEDecoder", "suffix": str(suffix)} if not fused:
            return WordEnds(suffix)
    raise ValueError(
        f"its decoder has a stage {dict(part)!r} here, which is not supported; supported are "
        "ByteLevel, ByteFallback, Fuse, Replace of a string, Strip, Metaspace, WordPiece, "
        "BPEDecoder"
    )


class StreamDecoder:
    """Feeds pieces through the stages. What it has given never changes."""

    def __init__(self, stages: Sequence[StageSpec], *, continuation: bool = False) -> None:
        self._stages = [stage.start(first=not continuation) for stage in stages]

    @property
    def holding(self) -> bool:
        """Whether text of pieces already fed may still come."""
        return any(stage.holding for stage in self._stages)

    def feed(self, piece: str) -> str:
        """The text that this piece makes certain; often "" in the middle of a character."""
        return "".join(text for _, text in self.feed_numbered(0, piece))

    def flush(self) -> str:
        """The rest, with U+FFFD for what never became a character. Ends the stream."""
        return "".join(text for _, text in self.flush_numbered())

    def feed_numbered(self, number: int, piece: str) -> Sequence[Segment]:
        """As ``feed``, each part of the text with the number of the piece that it is of; numbers
        rise. A character that several pieces spell is of the last of them."""
        return self._through(0, ((number, piece),))

    def flush_numbered(self) -> Sequence[Segment]:
        """As ``flush``, with numbers."""
        rest: list[Segment] = []
        for index, stage in enumerate(self._stages):
            rest += self._through(index + 1, stage.flush())
        return rest

    def _through(self, start: int, segments: Sequence[Segment]) -> Sequence[Segment]:
        for stage in self._stages[start:]:
            segments = [given for segment in segments for given in stage.feed(*segment)]
        return segments


def token_text_bytes(stages: Sequence[StageSpec], piece: str) -> bytes:
    """The bytes that one piece stands for in the middle of a text."""
    if ByteLevel in stages:
        return byte_level_bytes(piece)
    byte = BYTE_PIECE.fullmatch(piece)
    if byte and ByteFallback in stages:
        return bytes([int(byte[1], 16)])
    stream = StreamDecoder(stages, continuation=True)
    return (stream.feed(piece) + stream.flush()).encode()

"""Server-sent events, cut out of a body as its bytes arrive (WHATWG HTML, section 9.2).

Only ``data`` matters to an OpenAI-style stream. An event came when its last byte did. Pieces are
kept as they came, each with its time, and are cut later: a measurement must not compete with its
own measuring.
"""

from __future__ import annotations

DONE = b"[DONE]"


class EventCutter:
    """Feed it a body's pieces; it returns the ``data`` of each event that became whole."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of all events that end in ``piece``, in order. Lines end in LF, CRLF or CR."""
        if self._is_one_event(piece):
            return [piece[6:-2]]
        text = self._rest + piece
        if b"\r" in text:
            # A CR at the very end may be half of a CRLF.
            held = text.endswith(b"\r")
            body = (text[:-1] if held else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            text = body + (b"\r" if held else b"")
        *lines, self._rest = text.split(b"\n")
        found = []
        for line in lines:
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return found

    def _is_one_event(self, piece: bytes) -> bool:
        """What nearly every piece is: one line of data, whole. Tested because it is so cheap."""
        return (
            not self._rest
            and not self._data
            and piece.startswith(b"data: ")
            and piece.endswith(b"\n\n")
            and piece.count(b"\n") == 2
            and b"\r" not in piece
        )

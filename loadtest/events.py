"""Server-sent events, cut out of a body as its bytes arrive (WHATWG HTML, section 9.2).

Only ``data`` matters to an OpenAI-style stream. An event is kept as raw bytes with the time at
which its last byte came: to read it as JSON is left for later, so that a measurement does not
compete with its own measuring.
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

    @property
    def is_between_events(self) -> bool:
        """False while an event has begun and not ended: a stream that stops here was cut."""
        return not self._rest and not self._data

"""A scripted OpenAI-style server that knows when it got each request and sent each event.

    python fake_server.py          prints its port, then serves until its input ends
    python fake_server.py PORT     serves until it is stopped

The request itself says how it is to be answered, in a field ``script``:

    first, gap      seconds to the first event, and between events
    jitter          share by which each gap varies, up and down, evenly
    per_event       tokens in each event
    status          an HTTP error instead
    failure         truncated | closed | no_http | no_events | no_json | odd_choices | error_event |
                    error_and_close | no_length (which is none: the answer ends with its connection)
    padding         bytes more in each event
    finish          finish_reason

GET /truth gives ``{seed: {"received", "events", "ended"}}`` by the request's seed, as perf_counter
seconds: the clock is the machine's, so a client's times compare. GET /stall/SECONDS makes the whole
server stand still for so long, from now.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any


class FakeServer:
    def __init__(self) -> None:
        self.truth: dict[str, dict[str, Any]] = {}
        self.running = 0
        self.stuck = 0.0  # added to the running gauge: a leak
        self._stalled_until = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *fields = head.decode("latin-1").split("\r\n")
                method, path, _ = line.split(" ")
                lengths = [
                    f.split(":")[1] for f in fields if f.lower().startswith("content-length")
                ]
                body = await reader.readexactly(int(lengths[0])) if lengths else b""
                if method == "GET":
                    self._get(path, writer)
                elif not await self._post(path, body, writer):
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def _get(self, path: str, writer: asyncio.StreamWriter) -> None:
        content: bytes
        if path == "/v1/models":
            content = json.dumps({"object": "list", "data": [{"id": "fake"}]}).encode()
        elif path == "/truth":
            content = json.dumps(self.truth).encode()
        elif path == "/metrics":
            content = (
                f"quire_requests_running {self.running + self.stuck}\n"
                f"quire_requests_waiting 0\nquire_generation_tokens_total 7\n"
                'quire_memory_bytes{device="cpu",kind="weights"} 1024\n'
            ).encode()
        elif path.startswith("/stall/"):
            self._stalled_until = time.perf_counter() + float(path.split("/")[2])
            content = b"{}"
        elif path.startswith("/leak/"):
            self.stuck = float(path.split("/")[2])
            content = b"{}"
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)

    async def _post(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """True where the connection may serve another request."""
        truth: dict[str, Any] = {"received": time.perf_counter(), "events": []}
        try:
            request = json.loads(body)
            tokens = int(request.get("max_tokens", 1))
        except (ValueError, AttributeError):
            self._error(writer, 400, "not a JSON object")
            return True
        script = request.get("script", {})
        self.truth[str(request.get("seed"))] = truth
        if "status" in script:
            self._error(writer, script["status"], "as scripted")
            return True
        self.running += 1
        try:
            return await self._stream(path, request, script, tokens, truth, writer)
        finally:
            self.running -= 1
            truth["ended"] = time.perf_counter()

    async def _stream(
        self,
        path: str,
        request: dict[str, Any],
        script: dict[str, Any],
        tokens: int,
        truth: dict[str, Any],
        writer: asyncio.StreamWriter,
    ) -> bool:
        failure = script.get("failure")
        if failure == "no_http":
            writer.write(b"SSH-2.0-none\r\n\r\n")
            return False
        if failure == "no_events":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
            return True
        if failure == "no_length":
            whole = json.dumps({"choices": [{"text": "x", "finish_reason": "stop"}]})
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + whole.encode())
            return False
        draw = random.Random(request.get("seed"))
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        due = truth["received"]
        per_event = script.get("per_event", 1)
        for number in range(tokens // per_event):
            jitter = 1 + script.get("jitter", 0.0) * draw.uniform(-1, 1)
            due += script.get("first", 0.0) if number == 0 else script.get("gap", 0.0) * jitter
            await self._until(due)
            if failure in ("closed", "truncated") and number == tokens // 2:
                if failure == "truncated":
                    writer.write(b"0\r\n\r\n")
                    await writer.drain()
                return False
            padding = {"padding": "." * script["padding"]} if "padding" in script else {}
            self._event(writer, path, {"text": "x" * per_event, **padding})
            truth["events"].append(time.perf_counter())
            await writer.drain()
        if failure in ("error_event", "error_and_close"):
            _chunk(writer, json.dumps({"error": {"message": "as scripted"}}))
            if failure == "error_and_close":
                await writer.drain()
                return False
        elif failure == "odd_choices":
            _chunk(writer, json.dumps({"choices": [7]}))
        elif failure == "no_json":
            _chunk(writer, "{not json")
        else:
            self._event(writer, path, {"text": "", "finish_reason": script.get("finish", "length")})
            usage = {"prompt_tokens": 9, "completion_tokens": tokens}
            _chunk(writer, json.dumps({"choices": [], "usage": usage}))
        _chunk(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        return True

    async def _until(self, due: float) -> None:
        while (left := max(due, self._stalled_until) - time.perf_counter()) > 0:
            await asyncio.sleep(left)

    def _event(self, writer: asyncio.StreamWriter, path: str, choice: dict[str, Any]) -> None:
        if path.endswith("chat/completions"):
            choice = {**choice, "delta": {"content": choice.pop("text")}}
        _chunk(writer, json.dumps({"choices": [{"index": 0, **choice}]}))

    def _error(self, writer: asyncio.StreamWriter, status: int, message: str) -> None:
        content = json.dumps({"error": {"message": message}}).encode()
        head = f"HTTP/1.1 {status} Error\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)


def _chunk(writer: asyncio.StreamWriter, data: str) -> None:
    event = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%s\r\n" % (len(event), event))


async def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    server = await asyncio.start_server(FakeServer().serve, "127.0.0.1", port, backlog=4096)
    if port:
        await server.serve_forever()
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())

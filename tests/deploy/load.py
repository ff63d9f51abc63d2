"""Clients that keep a server busy until they are told to stop, in all the ways that it counts."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time

import httpx

from tests.e2e.server_process import ServerProcess

PROMPT = "def add(a, b):\n    return a + b\n\n\n" * 3
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Load:
    """``clients`` threads, each with one request at a time; use as a context manager."""

    def __init__(self, server: ServerProcess, clients: int) -> None:
        self._server = server
        self._stop = threading.Event()
        self._count = itertools.count()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._server.base_url, timeout=60) as client:
            while not self._stop.is_set():
                self._one(client, next(self._count))

    def _one(self, client: httpx.Client, number: int) -> None:
        """Mostly long streams; every eighth is met by a stop string, refused, or left."""
        if number % 8 == 5:
            leave(self._server)
            return
        body = {
            "prompt": f"{PROMPT}# {number % 5}\n",
            "max_tokens": 120,
            "ignore_eos": True,
            "stream": True,
        }
        if number % 8 == 6:
            body |= {"stop": ["a", "e", "\n"], "ignore_eos": False}
        if number % 8 == 7:
            body |= {"max_tokens": -1}
        wanted = 400 if number % 8 == 7 else 200
        try:
            answer = client.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            self.failures.append(repr(error))
            return
        if answer.status_code != wanted:
            self.failures.append(f"{answer.status_code}: {answer.text[:200]}")


def leave(server: ServerProcess) -> None:
    """Opens a stream, reads its beginning, and hangs up."""
    with server.connect() as connection:
        connection.sendall(server.request_bytes(prompt=PROMPT, max_tokens=200, stream=True))
        connection.recv(1024)
        time.sleep(0.05)


class Streams:
    """``count`` streams that nobody reads; use as a context manager."""

    def __init__(self, server: ServerProcess, count: int, max_tokens: int) -> None:
        self._connections = [server.connect() for _ in range(count)]
        for number, connection in enumerate(self._connections):
            request = server.request_bytes(
                prompt=f"{PROMPT}# {number}\n", max_tokens=max_tokens, ignore_eos=True, stream=True
            )
            connection.sendall(request)

    def kill(self) -> None:
        """All at once; every second one says goodbye, the others are cut off."""
        for number, connection in enumerate(self._connections):
            if number % 2 and connection.fileno() >= 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            connection.close()

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

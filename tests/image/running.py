"""Quire in a container, as a client and as an operator meet it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests.e2e.server_process import http_get
from tests.image.container_engine import CommandFailed, ContainerEngine

_POLL_S = 0.2


def wait_until(what: str, is_so: Callable[[], bool], seconds: float = 120) -> None:
    """
    Raises:
        AssertionError: it was not so in time.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class RunningQuire:
    """A container that serves Quire at ``port`` of this machine."""

    engine: ContainerEngine
    name: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> httpx.Response:
        return http_get(self.url + path, timeout=30)

    def complete(self, **fields: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/v1/completions", json=fields, timeout=120)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def stream(self, **fields: Any) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed completion, up to [DONE]."""
        body = fields | {"stream": True}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=120) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    return
                if line:
                    yield json.loads(line.removeprefix("data: "))
        raise AssertionError("the stream ended without [DONE]")

    def is_ready(self) -> bool:
        try:
            return self.get("/ready").status_code == 200
        except httpx.TransportError:
            state = self.inspect("{{.State.Status}}")
            assert state in ("created", "running"), f"{state}\n{self.logs()}"
            return False

    def wait_ready(self) -> None:
        wait_until("/ready", self.is_ready)

    def inspect(self, form: str) -> str:
        return self.engine.podman("inspect", "--format", form, self.name).strip()

    def logs(self) -> str:
        return self.engine.logs(self.name)

    def sh(self, script: str) -> str:
        """What a shell in the container prints, as the user that the image runs as."""
        return self.engine.podman("exec", self.name, "sh", "-c", script)

    def is_healthy(self) -> bool:
        """Runs the image's health check once. No timer does where there is no systemd."""
        try:
            self.engine.podman("healthcheck", "run", self.name)
        except CommandFailed:
            return False
        return True

    def processes(self) -> dict[int, tuple[str, str]]:
        """State and command line of every process in the container but the one that asks."""
        line = "$(cut -d' ' -f1,3 $p/stat) $(tr '\\0' ' ' <$p/cmdline)"
        script = f"for p in /proc/[0-9]*; do echo {line}; done"
        found = {}
        for line in self.sh(script).splitlines():
            pid, state, *command = line.split()
            found[int(pid)] = (state, " ".join(command))
        return {pid: seen for pid, seen in found.items() if "/proc/[0-9]" not in seen[1]}

    def pid_of(self, module: str) -> int:
        """The one process whose command line names ``module``."""
        (pid,) = [pid for pid, (_, command) in self.processes().items() if module in command]
        return pid

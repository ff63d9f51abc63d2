"""The checkpoint's own chat template, rendered by a worker process that can be killed.

Jinja is a programming language: a template can loop for ever or build a gigabyte. The sandbox keeps
it from the machine; the worker's alarm and memory limit keep it from the server's time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import ErrorCode, QuireError, StartupError
from server.text import template_worker

log = logging.getLogger("quire.server")

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What one rendering may use. ``workers`` bounds how many run at once."""

    seconds: float = 2.0
    memory_bytes: int = 1024 * 1024 * 1024  # address space
    max_characters: int = 4 * 1024 * 1024
    workers: int = 2


class ChatTemplate:
    """A template and its workers. ``variables`` are the special tokens that it may write.

    ``file`` is where it is from. ``is_broken`` tells, once started, that it is no valid template:
    every rendering fails.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
        file: str = "chat template",
    ) -> None:
        self.source = source
        self.file = file
        self.is_broken = False
        self._variables = dict(variables or {})
        self._limits = limits or TemplateLimits()
        self._idle: list[_Worker] = []
        self._slots = asyncio.Semaphore(self._limits.workers)

    @classmethod
    def from_folder(cls, folder: Path, limits: TemplateLimits | None = None) -> ChatTemplate | None:
        """The folder's chat_template.jinja, else tokenizer_config.json's; None where neither is.

        Raises:
            StartupError: a file is not what it should be; names it.
        """
        config = _tokenizer_config(folder / CONFIG_FILE)
        found = _template_source(folder, config)
        if found is None:
            return None
        source, file = found
        return cls(source, _special_tokens(config), limits, str(folder / file))

    async def start(self) -> None:
        """Starts one worker ahead of the first request. Warns of a template that is none: the model
        is served all the same, because completions need no template."""
        async with self._worker() as worker:
            problem = worker.problem
        if problem is not None:
            self.is_broken = problem["kind"] == "syntax"
            log.warning("%s cannot be used, and chats will fail: %s", self.file, problem["error"])

    async def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt of a conversation, the answer's opening included.

        Raises:
            QuireError: 400 where the template refuses the messages or the text is too long; 500
                where the template fails or exceeds its time or memory.
        """
        job = {**self._variables, "messages": list(messages), "add_generation_prompt": True}
        async with self._worker() as worker:
            reply = await worker.ask(job)
        if "text" in reply:
            return reply["text"]
        raise _refusal(reply)

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[_Worker]:
        """A worker for one job. One that was not left in order is killed, never used again."""
        async with self._slots:
            worker = self._idle.pop() if self._idle else None
            if worker is None or not worker.alive:
                worker = await _Worker.spawn(self.source, self._limits)
            try:
                yield worker
            except BaseException:
                await worker.kill()
                raise
            if worker.alive:
                self._idle.append(worker)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().kill()


class _Worker:
    """One worker process and its two pipes. ``problem`` is why it cannot compile its template."""

    def __init__(self, process: asyncio.subprocess.Process, limits: TemplateLimits) -> None:
        self._process = process
        self._limits = limits
        self.problem: dict[str, str] | None = None

    @classmethod
    async def spawn(cls, source: str, limits: TemplateLimits) -> _Worker:
        """A worker that has compiled the template, or has tried to."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(Path(template_worker.__file__)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=8 * limits.max_characters,
            env={},
        )
        worker = cls(process, limits)
        options = {
            "template": source,
            "memory_bytes": limits.memory_bytes,
            "seconds": limits.seconds,
            "max_characters": limits.max_characters,
        }
        try:
            reply = await worker.ask(options)
        except BaseException:
            await worker.kill()
            raise
        worker.problem = None if "text" in reply else reply
        return worker

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, job: Mapping[str, Any]) -> dict[str, str]:
        """One job's reply. The worker ends itself when its time is over; twice that and it is
        killed."""
        if self.problem is not None:
            return self.problem
        seconds = self._limits.seconds
        try:
            line = await asyncio.wait_for(self._exchange(job), 2 * seconds + 5)
        except ConnectionError:
            line = b""
        except (TimeoutError, ValueError):
            line = b""
            await self.kill()
        if not line.endswith(b"\n"):
            await self._process.wait()  # it has ended; to kill it now would take its exit code
            return {"kind": "time", "error": f"it did not end within {seconds:g} s"}
        reply: dict[str, str] = json.loads(line)
        return reply

    async def _exchange(self, job: Mapping[str, Any]) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ConnectionError("the worker has no pipes")
        stdin.write(json.dumps(job).encode() + b"\n")
        await stdin.drain()
        return await stdout.readline()

    async def kill(self) -> None:
        if self.alive:
            self._process.kill()
        await self._process.wait()


def _refusal(reply: Mapping[str, str]) -> QuireError:
    detail = reply["error"].rstrip(".")
    if reply["kind"] == "raised":
        message = f"The model's chat template refused the messages: {detail}"
        return QuireError(ErrorCode.INVALID_VALUE, message, param="messages")
    if reply["kind"] == "too_long":
        message = f"The conversation is too long: {detail}. Send fewer or shorter messages."
        return QuireError(ErrorCode.CONTEXT_LENGTH, message, param="messages")
    message = f"The model's chat template failed: {detail}. Use /v1/completions instead."
    return QuireError(ErrorCode.INTERNAL, message, param="messages")


def _tokenizer_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StartupError(f"{CONFIG_FILE} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise StartupError(f"{CONFIG_FILE} does not hold an object")
    return config


def _template_source(folder: Path, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """The template and the name of its file; None where there is none."""
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8"), TEMPLATE_FILE
    found = config.get("chat_template")
    if found is None:
        return None
    if isinstance(found, str):
        return found, CONFIG_FILE
    if isinstance(found, list):
        for item in found:
            if isinstance(item, dict) and item.get("name") == "default":
                template = item.get("template")
                if isinstance(template, str):
                    return template, CONFIG_FILE
        raise StartupError(f'{CONFIG_FILE} lists chat templates, but none named "default"')
    raise StartupError(f"{CONFIG_FILE}: chat_template is neither text nor a list")


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name, each written as text or as an object with its "content"."""
    tokens: dict[str, str] = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens

"""The checkpoint's own chat template, rendered by worker processes that can be killed.

Jinja is a programming language: a template can loop for ever or build a gigabyte. The sandbox keeps
it from the machine; the bounds of its process keep it from the server's time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from server.errors import ErrorCode, QuireError
from server.text.template_files import FoundTemplate, find_template
from server.text.template_process import MACHINES, Clocks, TemplateLimits, TemplateProcess

__all__ = ["ChatTemplate", "TemplateLimits"]

log = logging.getLogger("quire.server")

_ATTEMPTS = 2
_RETRY_AFTER_S = 5


class ChatTemplate:
    """A template and its workers. ``variables`` are the special tokens that it may write.

    ``file`` is where it is from. ``unusable`` says why there is no template to be had from that
    file: every chat is refused with these words. ``is_broken`` tells that no chat can be served,
    for that reason or, once a worker was started, because the template does not compile.
    ``for_tools`` renders chats with tools in its place, with workers of its own.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
        file: str = "chat template",
        *,
        unusable: str | None = None,
        clocks: Clocks | None = None,
        for_tools: ChatTemplate | None = None,
    ) -> None:
        self.source = source
        self.file = file
        self.unusable = unusable
        self._variables = dict(variables or {})
        self._limits = limits or TemplateLimits()
        self._clocks = clocks or Clocks()
        self._for_tools = for_tools
        self._broken: dict[str, str] | None = None
        self._idle: list[TemplateProcess] = []
        self._slots = asyncio.Semaphore(self._limits.workers)
        self._large_slots = asyncio.Semaphore(max(1, self._limits.workers - 1))

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        variables: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
    ) -> ChatTemplate | None:
        """The folder's template, usable or not; None where there is none."""
        found = find_template(folder)
        if found is None:
            return None

        def made(one: FoundTemplate, for_tools: ChatTemplate | None = None) -> ChatTemplate:
            path = str(folder / one.file)
            return cls(
                one.source, variables, limits, path, unusable=one.problem, for_tools=for_tools
            )

        return made(found, None if found.for_tools is None else made(found.for_tools))

    @property
    def is_broken(self) -> bool:
        return self.unusable is not None or self._broken is not None

    async def start(self) -> None:
        """Starts one worker ahead of the first request. Warns of a template that is none: the model
        is served all the same, because completions need no template."""
        problem = self.unusable
        if problem is None:
            reply = await self._attempt(None)
            problem = reply.get("error")
        if problem is not None:
            log.warning("%s cannot be used, so chats will be refused: %s", self.file, problem)

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt of a conversation, the answer's opening included. ``tools`` are OpenAI's
        objects of type "function", as transformers gives them to a template.

        A worker that ended for a reason that can be the machine's is started again and the chat
        tried once more. A template that used up its processor time is not: it would again.

        Raises:
            QuireError: 400 where there is no usable template, where it refuses the messages or the
                text is too long; 500 where it fails or exceeds its processor time or memory; 503
                where no worker was free or none stayed.
        """
        if tools is not None and self._for_tools is not None:
            return await self._for_tools.render(messages, tools)
        if self.unusable is not None:
            raise _unusable(Path(self.file).name, self.unusable)
        job = {
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "now": datetime.now().isoformat(),
        }
        is_large = _characters(messages) > self._limits.large
        for attempt in range(_ATTEMPTS):
            async with self._turn(is_large):
                reply = await self._attempt(job, is_large)
            if reply.get("kind") not in MACHINES:
                break
            last = attempt == _ATTEMPTS - 1
            log.warning(
                "chat template: %s; %s",
                reply["error"],
                "refusing the chat" if last else "retrying once",
            )
        if "text" in reply:
            return reply["text"]
        raise _refusal(reply)

    @asynccontextmanager
    async def _turn(self, is_large: bool) -> AsyncIterator[None]:
        """A worker's place. Large conversations together leave one place to the others."""
        async with AsyncExitStack() as places:
            try:
                async with asyncio.timeout(self._limits.wait_seconds):
                    if is_large:
                        await places.enter_async_context(self._large_slots)
                    await places.enter_async_context(self._slots)
            except TimeoutError:
                raise QuireError(
                    ErrorCode.QUEUE_TIMEOUT,
                    f"The chat waited {self._limits.wait_seconds:g} s for its turn at the model's "
                    "chat template. Try again later.",
                    retry_after=_RETRY_AFTER_S,
                ) from None
            yield

    async def _attempt(
        self, job: Mapping[str, Any] | None, is_large: bool = False
    ) -> dict[str, str]:
        """One job's reply; without a job a worker is started only. A worker that was not left in
        order is killed, never used again."""
        if self._broken is not None:
            return self._broken
        try:
            worker = await self._free_worker()
        except OSError as error:
            told = f"its process could not be started: {error.strerror or error}"
            return {"kind": "died", "error": told}
        try:
            reply = worker.problem or {"text": ""}
            if worker.problem is not None:
                if reply["kind"] not in MACHINES:
                    self._broken = reply
            elif job is not None:
                reply = await worker.ask(job, is_large=is_large)
        except BaseException:
            await worker.kill()
            raise
        if worker.problem is not None:
            await worker.kill()
        elif worker.alive:
            self._idle.append(worker)
        return reply

    async def _free_worker(self) -> TemplateProcess:
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
        return await TemplateProcess.spawn(self.source, self._variables, self._limits, self._clocks)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().kill()
        if self._for_tools is not None:
            await self._for_tools.close()


def _characters(messages: Sequence[Mapping[str, Any]]) -> int:
    """The text of a conversation, which is what a rendering's cost grows with."""
    total = 0
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, str):
            total += len(content)
        else:
            total += sum(len(part["text"]) for part in content)
    return total


def _unusable(file: str, problem: str) -> QuireError:
    return QuireError(
        ErrorCode.NO_CHAT_TEMPLATE,
        f"The model's chat template cannot be used: {file}: {problem.rstrip('.')}. "
        "Use /v1/completions.",
        param="messages",
    )


def _refusal(reply: Mapping[str, str]) -> QuireError:
    detail = reply["error"].rstrip(".")
    if reply["kind"] == "raised":
        message = f"The model's chat template refused the messages: {detail}"
        return QuireError(ErrorCode.INVALID_VALUE, message, param="messages")
    if reply["kind"] == "too_long":
        message = f"The conversation is too long: {detail}. Send fewer or shorter messages."
        return QuireError(ErrorCode.CONTEXT_LENGTH, message, param="messages")
    if reply["kind"] in MACHINES:
        message = (
            f"The model's chat template could not be rendered, tried {_ATTEMPTS} times: {detail}. "
            "The machine is too busy for it or ends its process. Try again later."
        )
        return QuireError(
            ErrorCode.TEMPLATE_UNAVAILABLE, message, param="messages", retry_after=_RETRY_AFTER_S
        )
    message = f"The model's chat template failed: {detail}. Use /v1/completions instead."
    return QuireError(ErrorCode.INTERNAL, message, param="messages")

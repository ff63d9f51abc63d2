"""Renders one chat template in a process of its own, whose memory it bounds.

Run as a script by server.text.template_process, which bounds its time. The first line on standard
input is a JSON object {template, variables, memory_bytes, max_characters}; each following line is
one job {messages, tools, now}. Every line is answered by one line {"text"} or {"error", "kind"}:
the first once the template is compiled, with an empty text. It imports nothing of the server, so
that it starts fast and holds nothing worth stealing.

A template sees what it sees in transformers 5: the same settings of Jinja, the same names.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
# What the probe of a template says, and what no template has a reason to show.
_PROBE, _DECOY = "probe-of-the-text", "probe-of-a-foreign-key"
_PROBES = (
    [{"role": "user"}],
    [{"role": "system", "content": "system"}, {"role": "user"}],
)


class RaisedByTemplate(Exception):
    """The template called raise_exception: the messages do not suit it."""


class TooLong(Exception):
    """The text outgrew its bound."""


def raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplate(str(message))


class Dict:
    """``dict`` as a template has it: a function, not the type with all that hangs on it."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as templates expect it: not escaped for HTML, which jinja2's own filter does."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def compile_template(source: str, strftime_now: Callable[[str], str]) -> Any:
    """The template, with the tags, filters and functions that checkpoints count on."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %} marks for a trainer what the model is to say.
        In a prompt its content is all that it stands for."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class PlainNamespace(Namespace):
        """A namespace that holds no name beginning with an underscore."""

        def __init__(*args: Any, **values: Any) -> None:  # a template may name a value "self"
            attributes = dict(*args[1:], **values)
            for name in attributes:
                check_name(name)
            Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            Namespace.__setitem__(self, name, value)

    def check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}, which begins with _")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.globals["dict"] = Dict()
    environment.globals["namespace"] = PlainNamespace
    return environment.from_string(source)


class Renderer:
    """A compiled template. ``takes_text`` and ``takes_parts`` tell in which of OpenAI's two forms
    it reads a message's content; one that loses the other form is given the one that it reads."""

    def __init__(self, source: str, variables: Mapping[str, str], max_characters: int) -> None:
        self._variables = variables
        self._max_characters = max_characters
        self._now = datetime.now()
        self._template = compile_template(source, lambda form: self._now.strftime(form))
        self.takes_text, self.takes_parts = self._forms()

    def render(self, job: Mapping[str, Any]) -> str:
        self._now = datetime.fromisoformat(job["now"])
        return self._text([self._seen(message) for message in job["messages"]], job["tools"])

    def _seen(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message for this template. A key without a value is left out, as transformers does:
        many templates would write "None"."""
        seen = {key: value for key, value in message.items() if value is not None}
        content = seen.get("content")
        if isinstance(content, list) and not self.takes_parts:
            seen["content"] = "\n".join(part["text"] for part in content)
        elif isinstance(content, str) and not self.takes_text:
            seen["content"] = [{"type": "text", "text": content}]
        return seen

    def _text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        parts: list[str] = []
        size = 0
        pieces = self._template.generate(
            **{
                **self._variables,
                "messages": messages,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": True,
            }
        )
        for piece in pieces:
            size += len(piece)
            if size > self._max_characters:
                raise TooLong(f"the text is longer than {self._max_characters} characters")
            parts.append(piece)
        return "".join(parts)

    def _forms(self) -> tuple[bool, bool]:
        """Whether content as text and as a list of parts comes through, by trying.

        One that writes a list as Python or JSON shows its keys, and has not understood it.
        """
        for messages in _PROBES:
            text = self._tried(messages, _PROBE)
            parts = self._tried(messages, [{"type": "text", "text": _PROBE, "key": _DECOY}])
            takes_text = _PROBE in text
            takes_parts = _PROBE in parts and _DECOY not in parts
            if takes_text or takes_parts:
                return takes_text, takes_parts
        return True, False

    def _tried(self, messages: Sequence[Mapping[str, Any]], content: object) -> str:
        try:
            return self._text([*messages[:-1], {**messages[-1], "content": content}])
        except Exception:  # any fault of a template: it does not take such messages
            return ""


def fault(error: Exception) -> dict[str, str]:
    """The reply for what the template did. Any fault of it is its own, and is reported."""
    match error:
        case RaisedByTemplate():
            return {"error": str(error)[:500], "kind": "raised"}
        case TooLong():
            return {"error": str(error), "kind": "too_long"}
        case MemoryError():
            return {"error": "it needs too much memory", "kind": "memory"}
    from jinja2 import TemplateSyntaxError

    if isinstance(error, TemplateSyntaxError):
        return {"error": f"line {error.lineno}: {error.message}"[:500], "kind": "syntax"}
    return {"error": f"{type(error).__name__}: {error}"[:500], "kind": "failed"}


def send(reply: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    options = json.loads(sys.stdin.readline())
    memory = options["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        renderer = Renderer(options["template"], options["variables"], options["max_characters"])
    except Exception as error:
        send(fault(error))
        return
    send({"text": ""})
    for line in sys.stdin:
        try:
            reply = {"text": renderer.render(json.loads(line))}
        except Exception as error:
            reply = fault(error)
        send(reply)


if __name__ == "__main__":
    main()

"""Renders one chat template in a process of its own, which bounds its time and its memory.

Run as a script by server.text.chat_template. The first line on standard input is a JSON object
{template, memory_bytes, seconds, max_characters}; each following line is the variables of one
rendering. Every line is answered by one line {"text"} or {"error", "kind"}: the first once the
template is compiled, with an empty text. It imports nothing of the server, so that it starts fast
and holds nothing worth stealing.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1


class RaisedByTemplate(Exception):
    """The template called raise_exception: the messages do not suit it."""


class TooLong(Exception):
    """The text outgrew its bound."""


def raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplate(str(message))


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


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


def compile_template(source: str) -> Any:
    """The template, with the tags, filters and functions that checkpoints count on."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %} marks for a trainer what the model is to say.
        In a prompt its content is all that it stands for."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(source)


def render(template: Any, variables: dict[str, Any], max_characters: int) -> str:
    parts: list[str] = []
    size = 0
    for part in template.generate(**variables):
        size += len(part)
        if size > max_characters:
            raise TooLong(f"the text is longer than {max_characters} characters")
        parts.append(part)
    return "".join(parts)


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
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the alarm ends the process
    signal.setitimer(signal.ITIMER_REAL, options["seconds"])
    try:
        template = compile_template(options["template"])
    except Exception as error:
        send(fault(error))
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    send({"text": ""})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, options["seconds"])
        try:
            reply = {"text": render(template, json.loads(line), options["max_characters"])}
        except Exception as error:
            reply = fault(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(reply)


if __name__ == "__main__":
    main()

"""The server's options: one table drives flags, variables, the TOML file and --help.

What an option says of devices is what the registered backends say of themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.config.values import (
    Reader,
    auto_or,
    choice,
    choice_of,
    integer,
    named,
    none_or,
    read_switch,
    read_text,
    seconds,
    size,
    zero_or,
)
from server.memory.backends.record import Backend
from server.memory.backends.registry import AUTO, backends, devices
from server.memory.backends.words import (
    auto_device,
    by_place,
    kv_cache_dtypes,
    only,
    places,
    quantisations,
    quantised_where,
)
from server.memory.engine_args import (
    LEAST_PROMPT_TOKENS,
    MAX_MODEL_LEN,
    MAX_QUEUED_REQUESTS,
    QUEUE_TIMEOUT_S,
    USUAL_TOKENS,
)

DEMO_MODEL_DIR = Path(__file__).resolve().parents[2] / "weights" / "demo" / "checkpoint"
PREFIX = "QUIRE_"


Text = str | Callable[[], str]


def _shown(text: Text) -> str:
    return text if isinstance(text, str) else text()


def _device_values() -> tuple[str, ...]:
    return AUTO, *devices()


def _backend_values() -> tuple[str, ...]:
    return tuple(backend.name for backend in backends())


def _pool(backend: Backend) -> str:
    """What the KV cache takes by itself (server.memory.planner.planner)."""
    if backend.own_memory:
        return "all that is left"
    return (
        f"what max-num-seqs sequences of {USUAL_TOKENS} tokens need (of max-model-len, where both "
        "are given), at least one of max-model-len, at most half of the free memory"
    )


def _step_tokens(backend: Backend) -> str:
    """Tokens of a step by default (server.memory.planner.resolve_args)."""
    most = str(backend.defaults.max_num_batched_tokens)
    if backend.defaults.thread_step_flops is None:
        return most
    return (
        f"what the threads compute in some 0.4 s, at most {most}, at least {LEAST_PROMPT_TOKENS} "
        "more than max-num-seqs"
    )


def _quantization_values() -> tuple[str, ...]:
    return "none", *quantisations()


@dataclass(frozen=True, slots=True)
class Option:
    """One option. ``default`` is text that ``read`` accepts, or None where there is no value.

    Texts that depend on the backends there are come as functions, called when they are shown.
    """

    name: str  # the flag without its dashes; also the file's key
    read: Reader
    default: str | None
    form_text: Text
    help_text: Text

    @property
    def form(self) -> str:
        """How a value looks, with its unit."""
        return _shown(self.form_text)

    @property
    def help(self) -> str:
        return _shown(self.help_text)

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return PREFIX + self.field.upper()


OPTIONS: tuple[Option, ...] = (
    Option("model-dir", read_text, str(DEMO_MODEL_DIR), "FOLDER", "checkpoint to serve"),
    Option("host", read_text, "127.0.0.1", "ADDRESS", "address to listen on"),
    Option("port", integer(0, 65535), "8000", "N", "TCP port to listen on; 0 takes a free one"),
    Option(
        "served-model-name",
        read_text,
        None,
        "NAME",
        "the model's name in the API; without one, the folder's name",
    ),
    Option(
        "device",
        choice_of(_device_values),
        AUTO,
        lambda: "|".join(_device_values()),
        lambda: f"where the model runs; auto is {auto_device()}",
    ),
    Option(
        "backend",
        auto_or(choice_of(_backend_values)),
        AUTO,
        lambda: "|".join((AUTO, *_backend_values())),
        "what computes there: auto is the device's default, native its C kernels",
    ),
    Option(
        "dtype",
        choice("auto", "float32", "bfloat16", "float16"),
        "auto",
        "auto|float32|bfloat16|float16",
        lambda: (
            "format of weights and KV cache; auto is "
            + by_place(lambda backend: backend.auto_dtype, "; ")
        ),
    ),
    Option(
        "quantization",
        none_or(choice_of(_quantization_values)),
        "none",
        lambda: "|".join(_quantization_values()),
        lambda: "format of the model's matrices, made while loading" + quantised_where(),
    ),
    Option(
        "max-model-len",
        auto_or(integer(1, MAX_MODEL_LEN)),
        "auto",
        "auto|TOKENS",
        "longest prompt plus output; auto is the model's, or what fits the KV cache",
    ),
    Option(
        "max-num-seqs",
        auto_or(integer(1, 4096)),
        "auto",
        "auto|N",
        lambda: (
            "sequences computed at once; auto is "
            + by_place(lambda backend: backend.defaults.max_num_seqs, ", ")
        ),
    ),
    Option(
        "max-num-batched-tokens",
        auto_or(integer(1, 2**20)),
        "auto",
        "auto|TOKENS",
        lambda: "tokens computed in one step; auto is " + by_place(_step_tokens, ", "),
    ),
    Option(
        "block-size",
        auto_or(integer(1, 1024)),
        "auto",
        "auto|TOKENS",
        lambda: (
            "tokens in one KV cache block; auto is "
            + by_place(lambda backend: backend.defaults.block_size, ", ")
        ),
    ),
    Option(
        "batch-invariant",
        read_switch,
        "off",
        "on|off",
        lambda: (
            "answers are the same bits alone and in any batch, at some cost"
            + only(lambda backend: backend.batch_invariant)
        ),
    ),
    Option(
        "cuda-graphs",
        choice("start", "lazy", "off"),
        "lazy",
        "start|lazy|off",
        lambda: (
            f"when decode steps are captured on {places(lambda one: one.captures_graphs)}: "
            "before the first request, when first needed, or never"
        ),
    ),
    Option(
        "kv-cache-dtype",
        auto_or(named(kv_cache_dtypes)),
        "auto",
        lambda: "|".join(("auto", *kv_cache_dtypes())),
        lambda: (
            "format of the KV cache; auto is the dtype's; int8 takes half of 16 bits, and a scale "
            "for each head of a token" + only(lambda backend: bool(backend.kv_formats))
        ),
    ),
    Option(
        "kv-cache-memory",
        auto_or(size(2**10, 2**50)),
        "auto",
        "auto|SIZE",
        lambda: (
            "bytes of the KV cache (512MiB, 2GiB), refused where there is less; auto takes "
            + by_place(_pool, "; ")
        ),
    ),
    Option("prefix-caching", read_switch, "on", "on|off", "reuse the KV cache of equal prefixes"),
    Option(
        "max-queued-requests",
        integer(1, 2**20),
        str(MAX_QUEUED_REQUESTS),
        "N",
        "requests waiting before a 429; together they may have N x 1024 prompt tokens",
    ),
    Option(
        "queue-timeout",
        seconds(0.001, 86400),
        str(QUEUE_TIMEOUT_S),
        "SECONDS",
        "longest wait before a 503",
    ),
    Option(
        "api-memory",
        auto_or(size(2**10, 2**50)),
        "auto",
        "auto|SIZE",
        "memory for bodies, chats, prompts and unread answers in the API process, past which comes "
        "a 503; auto is an eighth of the free memory, from 128 MiB (or 8 x max-body-size) to 1 GiB",
    ),
    Option("max-body-size", size(1, 2**32), "4MiB", "SIZE", "largest request body before a 413"),
    Option(
        "max-connections",
        integer(1, 65536),
        "512",
        "N",
        "connections open at once; when all are taken, the one that has been quiet for longest is "
        "closed for a new one, and up to 256 more may ask for /health, /ready and /metrics only",
    ),
    Option(
        "stream-keep-alive",
        zero_or(seconds(1, 3600)),
        "15",
        "SECONDS",
        "silence after which a stream gets a comment, so that no proxy takes it for dead; 0 is off",
    ),
    Option(
        "generation-config",
        choice("auto", "none"),
        "auto",
        "auto|none",
        "auto takes absent sampling fields from generation_config.json, none from OpenAI's API; "
        "the end-of-sequence ids that it names are always used",
    ),
    Option("log-format", choice("text", "json"), "text", "text|json", "form of the log"),
    Option(
        "drain-timeout",
        seconds(0, 86400),
        "30",
        "SECONDS",
        "time that open requests get to finish after SIGTERM",
    ),
    Option(
        "threads",
        auto_or(integer(1, 4096)),
        "auto",
        "auto|N",
        "compute threads; auto is the number of cores this process may use, its container's quota "
        "counted",
    ),
)

# Read from their variables alone: for testing Quire itself, not for serving.
CPU_LEVEL = Option(
    "cpu-level",
    read_text,
    None,
    "LEVEL",
    "instruction level of the CPU's own kernels, instead of the best that has been tested",
)
DEBUG_CHECK_INVARIANTS = Option(
    "debug-check-invariants",
    read_switch,
    "off",
    "on|off",
    "check the KV cache's invariants after every step (slow)",
)
VARIABLES = (CPU_LEVEL, DEBUG_CHECK_INVARIANTS)


# How flags are taken from a command line: each at most once.


class Once(argparse.Action):
    """Stores a flag's value; a second one is an error, since which was meant is anybody's guess."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        given = namespace.__dict__.setdefault("_given", set())
        if self.dest in given:
            first = getattr(namespace, self.dest)
            raise argparse.ArgumentError(
                self, f"given twice, {first} and {values}; give it once, or run the command twice"
            )
        given.add(self.dest)
        setattr(namespace, self.dest, values)

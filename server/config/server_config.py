"""What the options of server.config.options come to at a start.

A value comes from the first of: the flag, the QUIRE_* variable, the file named by --config, the
default. Nothing is changed after start. This is the only module that reads the environment.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from server.config.options import DEMO_MODEL_DIR, OPTIONS, PREFIX, VARIABLES, Option
from server.errors import StartupError
from server.memory.engine_args import EngineArgs, refuse_few_tokens

DEMO_MODEL_NAME = "quire-demo"
_SPIN_COUNT = "10000"  # as fast as endless spinning on an idle machine, see DECISIONS.md


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the options came to. Sizes in bytes, times in seconds, None where auto was left.

    ``engine`` is the part that says how the model is served.
    """

    model_dir: str
    host: str
    port: int
    served_model_name: str | None
    engine: EngineArgs
    cuda_graphs: str
    api_memory: int | None
    max_body_size: int
    max_connections: int
    stream_keep_alive: float
    generation_config: str
    log_format: str
    drain_timeout: float
    debug_check_invariants: bool

    @property
    def model_name(self) -> str:
        """The name that the API serves the model under."""
        if self.served_model_name is not None:
            return self.served_model_name
        folder = Path(self.model_dir).resolve()
        return DEMO_MODEL_NAME if folder == DEMO_MODEL_DIR else folder.name or "model"


def resolve(
    flags: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    config_file: str | None = None,
) -> ServerConfig:
    """Reads every option from its first source and checks it.

    ``flags`` are the flags given, by option name without dashes. ``environment`` stands in for the
    process's own in tests.

    Raises:
        StartupError: an unknown option, key or variable, or a bad value; names the option and its
            source.
    """
    variables = os.environ if environment is None else environment
    config_file = config_file or variables.get(f"{PREFIX}CONFIG")
    from_file = _read_file(config_file) if config_file else {}
    _refuse_unknown_variables(variables)
    _refuse_unknown_flags(flags)
    values: dict[str, Any] = {}  # by field: the table and the fields agree
    for option in (*OPTIONS, *VARIABLES):
        text, source = _first_source(option, flags, variables, from_file, config_file)
        values[option.field] = None if text is None else _read(option, text, source)
    names = [field.name for field in fields(EngineArgs) if field.name in values]
    engine = EngineArgs(**{name: values.pop(name) for name in names})
    _refuse(engine)
    return ServerConfig(engine=engine, **values)


def limit_thread_spinning() -> None:
    """Makes idle compute threads sleep soon instead of spinning; to be called before torch loads.

    GNU's OpenMP spins for long at every barrier. When another process wants a core, the thread that
    the others wait for may be the one that lost it, and a step takes ten times as long. What
    the operator set wins.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def _first_source(
    option: Option,
    flags: Mapping[str, str],
    variables: Mapping[str, str],
    from_file: Mapping[str, str],
    config_file: str | None,
) -> tuple[str | None, str]:
    if option.name in flags:
        return flags[option.name], f"--{option.name}"
    if option.variable in variables:
        return variables[option.variable], option.variable
    if option.name in from_file:
        return from_file[option.name], f"{option.name} in {config_file}"
    return option.default, f"the default of --{option.name}"


def _read(option: Option, text: str, source: str) -> object:
    try:
        return option.read(text)
    except ValueError as error:
        raise StartupError(f"{source}: {error} (expected {option.form})") from None


def _read_file(path: str) -> dict[str, str]:
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise StartupError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"--config {path}: {error}") from None
    names = [option.name for option in OPTIONS]
    for key in document:
        if key not in names:
            raise StartupError(f"{path}: unknown key {key!r}{near(key, names)}")
    return {key: _scalar_text(path, key, value) for key, value in document.items()}


def _scalar_text(path: str, key: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int | float):
        return str(value)
    raise StartupError(f"{path}: {key} must be a string, a number or a boolean")


def _refuse_unknown_variables(variables: Mapping[str, str]) -> None:
    known = [option.variable for option in (*OPTIONS, *VARIABLES)] + [f"{PREFIX}CONFIG"]
    for name in variables:
        if name.startswith(PREFIX) and name not in known:
            raise StartupError(f"unknown variable {name}{near(name, known)}")


def _refuse_unknown_flags(flags: Mapping[str, str]) -> None:
    known = [option.name for option in OPTIONS]
    for name in flags:
        if name not in known:
            raise StartupError(f"unknown option --{name}{near(name, known)}")


def near(word: str, known: Sequence[str], others: str = "") -> str:
    """The end of a message about a word that is not known: those that it may have been meant for;
    where none is like it ``others``, or all."""
    like = word.replace("_", "-").lower() if not word.isupper() else word
    matches = [like] if like in known else difflib.get_close_matches(like, known, n=3, cutoff=0.6)
    if not matches:
        return others or "; known are: " + ", ".join(known)
    return "; did you mean " + " or ".join(matches) + "?"


def _refuse(args: EngineArgs) -> None:
    """The rules that hold between options, and those that no reader knows."""
    if args.max_num_batched_tokens is not None and args.max_num_seqs is not None:
        refuse_few_tokens(args.max_num_batched_tokens, args.max_num_seqs)
    if args.block_size is not None and args.block_size & (args.block_size - 1):
        raise StartupError(f"--block-size {args.block_size} is not a power of two")

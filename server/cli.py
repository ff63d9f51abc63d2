"""The command line: quire serve | plan | models. A command imports what it needs, late."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence

import server
from server.config.options import DEMO_MODEL_DIR, OPTIONS, Once, Option
from server.config.server_config import near, resolve
from server.errors import StartupError

EXIT_INTERRUPTED = 130  # as a shell says it
EXIT_REFUSED = 2  # a start-up error: an option, the folder, a checkpoint, a busy port

_PRECEDENCE = """\
Each option is also read from the variable QUIRE_<OPTION> (QUIRE_MAX_NUM_SEQS=8) and from the TOML
file named by --config or QUIRE_CONFIG (max-num-seqs = 8). The first of these counts: the flag, the
variable, the file, the default. An unknown key or QUIRE_ variable is an error.

Exit codes: 0 stopped after draining; 1 the engine failed too often; 2 could not start; 130 a second
signal stopped it at once.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if parsed.command is None and not rest:
        parser.print_help()
        return 0
    try:
        _refuse_rest(parsed.parser if parsed.command else parser, rest)
        return int(parsed.run(parsed))
    except StartupError as error:
        print(f"quire: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:  # before a command has handlers of its own
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quire", description="Serves large language models and accounts for every byte."
    )
    parser.add_argument("--version", action="version", version=f"quire {server.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        description="Serves one Hugging Face checkpoint folder over an OpenAI-style HTTP API.",
        epilog=_PRECEDENCE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for option in OPTIONS:
        _add_option(serve, option)
    serve.add_argument(
        "--config", action=Once, metavar="FILE", help="TOML file with any of these options"
    )
    serve.set_defaults(run=_serve, parser=serve)
    _add_plan(commands.add_parser)
    models = commands.add_parser(
        "models",
        help="list the supported model families",
        description="Lists the model families whose checkpoints are served, and what of each.",
        allow_abbrev=False,
    )
    models.add_argument("--json", action="store_true", help="as JSON, with every architecture")
    models.set_defaults(run=_models, parser=models)
    return parser


def _refuse_rest(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    """Arguments that ``parser``'s command does not know. Raises StartupError."""
    if not rest:
        return
    flags = [word.partition("=")[0] for word in rest if word.startswith("-")]
    if not flags:
        raise StartupError(f"{rest[0]!r} is one argument too many; see {parser.prog} --help")
    known = re.findall(r"--[\w-]+", parser.format_usage())
    like = near(flags[0], known, others=f"; {parser.prog} --help lists what is known")
    raise StartupError(f"unknown option {flags[0]}{like}")


def _add_plan(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    from server.plan_cli.options import DESCRIPTION, add_arguments, epilog

    plan = add_parser(
        "plan",
        help="say whether a model fits and how its memory would be split",
        description=DESCRIPTION,
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(plan)
    plan.set_defaults(run=_plan, parser=plan)


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    if option.name == "model-dir":
        parser.add_argument(
            "model_dir",
            nargs="?",
            default=argparse.SUPPRESS,
            metavar="MODEL_DIR",
            help=f"{option.help} (default: the demo model that ships with Quire)",
        )
        return
    default = "" if option.default is None else f" (default: {option.default})"
    parser.add_argument(
        f"--{option.name}",
        action=Once,
        dest=option.field,
        default=argparse.SUPPRESS,
        metavar=option.form,
        help=f"{option.help}{default}",
    )


def _serve(parsed: argparse.Namespace) -> int:
    given = vars(parsed)
    flags = {o.name: given[o.field] for o in OPTIONS if o.field in given}
    config = resolve(flags, config_file=parsed.config)
    if config.model_dir == str(DEMO_MODEL_DIR) and not DEMO_MODEL_DIR.is_dir():
        raise StartupError("the demo model is not in this installation: give a MODEL_DIR")
    from server.app.bootstrap import serve

    return serve(config)


def _plan(parsed: argparse.Namespace) -> int:
    from server.plan_cli.command import run

    return run(parsed)


def _models(parsed: argparse.Namespace) -> int:
    from server.startup.model_families import as_json, as_text

    print(as_json() if parsed.json else as_text())
    return 0

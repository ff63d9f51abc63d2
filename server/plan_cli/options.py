"""The arguments of ``quire plan``. Every command's parser has them: nothing heavy is imported."""

from __future__ import annotations

import argparse
import textwrap

from server.config.options import OPTIONS, Once
from server.plan_cli.devices import DEVICES, this_machine
from weights.formats import FORMATS, QUANTISED
from weights.shape_keys import SHAPE_KEYS

# Options that quire serve has too, with the same words and the same defaults.
SHARED = tuple(
    option
    for option in OPTIONS
    if option.name
    in (
        *("dtype", "quantization", "max-model-len", "max-num-seqs", "max-num-batched-tokens"),
        *("block-size", "kv-cache-memory", "batch-invariant"),
    )
)

KV_DTYPES: dict[str, str | None] = {
    "auto": None,
    **{fmt.torch_name: fmt.name for fmt in FORMATS.values()},
    **{name: name for name in QUANTISED if name != "int4"},
}

DESCRIPTION = """\
Says whether a model fits on a device, and how its memory would be split, before anything is
loaded: from a preset of a published shape, a shape of your own, or a checkpoint folder. Needs no
GPU, and reads no weights.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a preset (see --list) or a checkpoint folder; without one, the one quire serve takes",
    )
    add(
        "--shape",
        action=Once,
        metavar="FILE",
        help="a model's shape in TOML or JSON, by the keys below",
    )
    names = ", ".join((*this_machine(), *(device.name for device in DEVICES)))
    add(
        "--device",
        action=Once,
        dest="target",
        metavar="DEVICE",
        help=f"{names}, or a size such as 24GiB (default: this machine, as quire serve would)",
    )
    add(
        "--kv-cache-dtype",
        action=Once,
        choices=tuple(KV_DTYPES),
        default=None,
        help="format of the KV cache; what-if where the server keeps it in --dtype (default: auto)",
    )
    add(
        *("--tensor-parallel-size", "--tp"),
        action=Once,
        default="1",
        metavar="N",
        help="devices that share each layer; what-if: the server uses one (default: 1)",
    )
    for option in SHARED:
        default = "" if option.default is None else f" (default: {option.default})"
        add(
            f"--{option.name}",
            action=Once,
            dest=option.field,
            default=argparse.SUPPRESS,
            metavar=option.form,
            help=f"{option.help}{default}".replace("%", "%%"),
        )
    add("--config", action=Once, metavar="FILE", help="TOML file with any options of quire serve")
    add("--explain", action="store_true", help="print how each line comes about")
    add("--json", action="store_true", help="print everything as JSON")
    add("--list", action="store_true", help="list presets and devices (--json too), and stop")


def epilog() -> str:
    """Exit codes and the keys of a shape."""
    lines = ["Exit codes: 0 it fits; 1 it does not; 2 bad input.", "", "Keys of a --shape file:"]
    for name, key in SHAPE_KEYS.items():
        default = "needed" if key.default is None else key.default
        text = f"{key.form}: {key.help} ({default})"
        lines += textwrap.wrap(text, 98, initial_indent=f"  {name:<21}", subsequent_indent=" " * 23)
    return "\n".join(lines)

"""Published shapes under short names: data in the .toml files beside this one, one a family
or a publisher's line.

Each file's ``[defaults]`` hold for all of its shapes; every other table is one of them, a document
of weights.shapes. ``source`` says where the shape was published.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from weights.errors import CheckpointError
from weights.shapes import read_document, shape_spec
from weights.spec import ModelSpec

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Preset:
    name: str
    source: str
    note: str  # note that the plan shows; "" where there is nothing
    document: Mapping[str, Any]

    @property
    def spec(self) -> ModelSpec:
        return shape_spec(self.document, self.name)


@cache  # the files ship with the package and do not change while it runs
def read_presets() -> Mapping[str, Preset]:
    """Every preset by its name, families one after the other."""
    presets: dict[str, Preset] = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        tables = read_document(path)
        defaults = tables.pop("defaults")
        for name, own in tables.items():
            document = {**defaults, **own}
            presets[name] = Preset(name, document["source"], document.get("note", ""), document)
    return MappingProxyType(presets)


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises CheckpointError that names those that are near."""
    presets = read_presets()
    found = presets.get(name.lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), presets, n=4, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise CheckpointError(f"no preset and no folder is named {name!r}{hint}")

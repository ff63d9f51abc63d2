"""The list of faults as data: tests/mutants/*.toml, a file a room.

Each [[fault]] replaces one piece of one file, which must stand there exactly once, and says what a
user would see and which tests are nearest. One that changes nothing that anybody could see has
``equivalent``, with the reason.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
_KEYS = {"file", "before", "after", "sees", "tests", "equivalent"}


@dataclass(frozen=True, slots=True)
class Fault:
    """``file`` is relative to the repository, ``tests`` are arguments of pytest."""

    name: str  # room/number, as printed
    file: str
    before: str
    after: str
    sees: str
    tests: tuple[str, ...]
    equivalent: str = ""

    @property
    def room(self) -> str:
        return self.name.partition("/")[0]

    def planted(self, text: str) -> str:
        """The file's text with the fault in it. Raises ValueError where it fits no one place."""
        found = text.count(self.before)
        if found != 1:
            raise ValueError(f"{self.name}: its text stands {found} times in {self.file}")
        return text.replace(self.before, self.after)


def read_faults(folder: Path = FOLDER) -> list[Fault]:
    """All faults, rooms in the order of their names. Raises ValueError for a key nobody knows."""
    faults = []
    for path in sorted(folder.glob("*.toml")):
        for number, entry in enumerate(tomllib.loads(path.read_text())["fault"], 1):
            name = f"{path.stem}/{number}"
            if unknown := set(entry) - _KEYS:
                raise ValueError(f"{name}: unknown keys {sorted(unknown)}")
            faults.append(Fault(name, **{**entry, "tests": tuple(entry["tests"])}))
    return faults

"""Bugs that are planted one at a time: a patch of our own code at run time, and who notices it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest import MonkeyPatch

Apply = Callable[[MonkeyPatch], None]
Make = Callable[[Any], Any]


@dataclass(frozen=True)
class PlantedBug:
    name: str
    caught_by: str  # the check that fails with it
    apply: Apply
    family: str  # the checkpoint to run that on


class Bugs(list[PlantedBug]):
    """A list of bugs, each written beside the code that makes it."""

    def add(self, name: str, caught_by: str, apply: Apply, family: str = "llama") -> None:
        self.append(PlantedBug(name, caught_by, apply, family))

    def sets(self, name: str, caught_by: str, owner: Any, attribute: str, value: Any) -> None:
        self.add(name, caught_by, lambda patch: patch.setattr(owner, attribute, value))

    def wraps(
        self, name: str, caught_by: str, owner: Any, attribute: str, family: str = "llama"
    ) -> Callable[[Make], Make]:
        """``owner.attribute`` becomes what the decorated function makes of it."""

        def plant(make: Make) -> Make:
            def apply(patch: MonkeyPatch) -> None:
                patch.setattr(owner, attribute, make(getattr(owner, attribute)))

            self.add(name, caught_by, apply, family)
            return make

        return plant

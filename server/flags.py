"""How flags are taken from a command line: each at most once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


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

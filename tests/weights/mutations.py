"""What a mutation of a good checkpoint folder is, and how a list of them is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.weights.folders import WEIGHTS, Header, edit_config, edit_header, write_parts

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
Apply = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Mutation:
    """``apply`` spoils the folder; every one of ``words`` must stand in the message. ``in_bytes``:
    only the tensors' own bytes show what is wrong, and not headers and configuration."""

    name: str
    apply: Apply
    words: tuple[str, ...]
    sharded: bool = False
    tied: bool = False
    in_bytes: bool = False


class Mutations(dict[str, Mutation]):
    """Mutations by name, gathered as they are declared."""

    def mutation(self, *words: str, name: str = "", **how: bool) -> Callable[[Apply], Apply]:
        """The decorated function spoils a folder."""

        def register(apply: Apply) -> Apply:
            self._add(Mutation(name or apply.__name__, apply, words, **how))
            return apply

        return register

    def config(self, name: str, *words: str, **changes: object) -> None:
        """A mutation that sets keys of config.json."""

        def apply(folder: Path) -> None:
            edit_config(folder, **changes)

        self._add(Mutation(name, apply, ("config.json", *words)))

    def written(self, file: str, name: str, content: str | bytes, *words: str, **how: bool) -> None:
        """A mutation that writes a file anew."""
        raw = content if isinstance(content, bytes) else content.encode()

        def apply(folder: Path) -> None:
            (folder / file).write_bytes(raw)

        self._add(Mutation(name, apply, (file, *words), **how))

    def header(self, name: str, header: Header | bytes, *words: str) -> None:
        """A mutation that writes a header, and no data behind it."""

        def apply(folder: Path) -> None:
            write_parts(folder / WEIGHTS, header, b"")

        self._add(Mutation(name, apply, (WEIGHTS, *words)))

    def entry(self, name: str, *words: str, tensor: str = Q_PROJ, **changes: object) -> None:
        """A mutation that sets fields of one tensor's entry in the header."""

        def apply(folder: Path) -> None:
            edit_header(folder, lambda header: header[tensor].update(changes))

        self._add(Mutation(name, apply, (WEIGHTS, tensor, *words)))

    def _add(self, mutation: Mutation) -> None:
        if mutation.name in self:
            raise ValueError(f"two mutations are named {mutation.name}")
        self[mutation.name] = mutation

"""Choose the text the demo model learns from, and the text it is scored on.

The text is the source of the Python standard library of the interpreter that runs this
file. It is split by *unit*, a top-level module or a whole package, never inside one:

* held out: units in the order of the SHA-256 of their names, taken until 270 kB are full;
* dev: the next units in that order, 120 kB, used to compare settings while training;
* train: everything else, less the tests of held-out and dev units, and less every file that
  shares runs of lines with them.

Run `python -m weights.demo.corpus --write-heldout` to copy the held-out files into
`weights/demo/heldout/`; without the flag it prints the three parts and their sizes. Once
that folder is filled, its contents say what is held out, so another Python version with
other files still never trains on them.
"""

from __future__ import annotations

import argparse
import hashlib
import sysconfig
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HELDOUT_DIR = Path(__file__).parent / "heldout"
# Kept as text so that linters, type checkers and importers pass the copies by.
HELDOUT_SUFFIX = ".txt"
HELDOUT_BYTES = 270_000
DEV_BYTES = 120_000
UNIT_BYTES = (4_000, 110_000)
SHARED_RUNS = 10
RUN_LINES = 5

# Installed packages, build records of one machine, and generated tables.
NOT_TEXT = ("site-packages", "lib-dynload", "config-", "_sysconfigdata", "encodings", "__pycache__")
# Trained on, but no candidates for the held-out part: tests, tools and documentation text.
NOT_CANDIDATES = frozenset(
    {"test", "idlelib", "lib2to3", "turtledemo", "tkinter", "distutils", "pydoc_data"}
)


@dataclass(frozen=True)
class Document:
    """One source file: its path inside the library and its text."""

    path: str
    text: str

    @property
    def unit(self) -> str:
        """The top-level module or package the file belongs to."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def is_test(self) -> bool:
        """Whether the file belongs to the library's own test suite."""
        return "test" in self.path.split("/")[:-1] or "tests" in self.path.split("/")[:-1]

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Split:
    """The three parts of the library."""

    train: tuple[Document, ...]
    dev: tuple[Document, ...]
    heldout: tuple[Document, ...]


def _looks_generated(data: bytes) -> bool:
    """Whether a file is a table rather than code: hard to compress, or mostly not ASCII."""
    if len(data) < 2_000:
        return False
    packed = len(zlib.compress(data)) / len(data)
    foreign = sum(byte >= 0x80 for byte in data) / len(data)
    return packed > 0.5 or foreign > 0.1


def read_library(root: Path | None = None) -> tuple[Document, ...]:
    """Read every usable source file of the standard library, in the order of their paths."""
    base = root if root is not None else Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(base.rglob("*.py")):
        relative = path.relative_to(base)
        if any(part.startswith(NOT_TEXT) for part in relative.parts):
            continue
        data = path.read_bytes()
        if not data.strip() or _looks_generated(data):
            continue
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        documents.append(Document(relative.as_posix(), text))
    return tuple(documents)


def units_in_order(documents: Iterable[Document]) -> list[tuple[str, int]]:
    """Name and size of every candidate unit, in the order of the SHA-256 of its name."""
    sizes: dict[str, int] = {}
    for document in documents:
        if document.unit not in NOT_CANDIDATES and not document.unit.startswith("_"):
            sizes[document.unit] = sizes.get(document.unit, 0) + document.size
    low, high = UNIT_BYTES
    fitting = [(unit, size) for unit, size in sizes.items() if low <= size <= high]
    return sorted(fitting, key=lambda item: hashlib.sha256(item[0].encode()).hexdigest())


def choose_units(documents: Iterable[Document]) -> tuple[frozenset[str], frozenset[str]]:
    """The units held out and the units for dev, by the fixed rule."""
    parts: tuple[set[str], set[str]] = (set(), set())
    budgets = [HELDOUT_BYTES, DEV_BYTES]
    which = 0
    for unit, size in units_in_order(documents):
        if which == len(parts):
            break
        parts[which].add(unit)
        budgets[which] -= size
        if budgets[which] <= 0:
            which += 1
    return frozenset(parts[0]), frozenset(parts[1])


def read_heldout(folder: Path = HELDOUT_DIR) -> tuple[Document, ...]:
    """Read the committed held-out files, in the order of their paths."""
    return tuple(
        Document(
            path.relative_to(folder).as_posix().removesuffix(HELDOUT_SUFFIX),
            path.read_bytes().decode("utf-8"),
        )
        for path in sorted(folder.rglob("*.py" + HELDOUT_SUFFIX))
    )


def line_runs(text: str) -> set[int]:
    """Hashes of every run of consecutive non-blank lines, whitespace at the ends ignored."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = range(len(lines) - RUN_LINES + 1)
    digests = ("\n".join(lines[i : i + RUN_LINES]).encode() for i in starts)
    return {int.from_bytes(hashlib.blake2b(d, digest_size=8).digest(), "big") for d in digests}


def is_test_of(document: Document, units: frozenset[str]) -> bool:
    """Whether the file is part of the test suite of one of the units."""
    if not document.is_test:
        return False
    stems = [part.removesuffix(".py") for part in document.path.split("/")]
    return any(
        stem in (unit, f"test_{unit}") or stem.startswith(f"test_{unit}_")
        for stem in stems
        for unit in units
    )


def split_library(documents: tuple[Document, ...], heldout: tuple[Document, ...] = ()) -> Split:
    """Split the library; `heldout`, where given, says what is held out instead of the rule."""
    heldout_units, dev_units = choose_units(documents)
    if heldout:
        heldout_units = frozenset(document.unit for document in heldout)
        dev_units -= heldout_units
    else:
        heldout = tuple(d for d in documents if d.unit in heldout_units)
    dev = tuple(d for d in documents if d.unit in dev_units)
    apart = heldout_units | dev_units
    known = set().union(*(line_runs(d.text) for d in (*heldout, *dev)))
    train = tuple(
        d
        for d in documents
        if d.unit not in apart
        and not is_test_of(d, apart)
        and len(line_runs(d.text) & known) <= SHARED_RUNS
    )
    return Split(train, dev, heldout)


def write_heldout(documents: Iterable[Document], folder: Path = HELDOUT_DIR) -> None:
    """Copy the held-out files into the repository, byte for byte."""
    for document in documents:
        path = folder / (document.path + HELDOUT_SUFFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.text.encode())


def main() -> None:
    """Print the split; with --write-heldout, also fill the held-out folder by the rule."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--write-heldout", action="store_true")
    options = parser.parse_args()
    library = read_library()
    split = split_library(library, () if options.write_heldout else read_heldout())
    if options.write_heldout:
        write_heldout(split.heldout)
    for name, part in (("train", split.train), ("dev", split.dev), ("heldout", split.heldout)):
        units = sorted({d.unit for d in part})
        shown = " ".join(units) if name != "train" else f"{len(units)} units"
        print(f"{name}: {len(part)} files, {sum(d.size for d in part)} bytes: {shown}")


if __name__ == "__main__":
    main()

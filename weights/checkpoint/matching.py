"""Matches a checkpoint's tensors with the parameters that a ModelSpec needs. Strict: nothing
missing, nothing unexpected, every shape and dtype right; and still no tensor is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from weights.checkpoint.folder import Checkpoint
from weights.checkpoint.pieces import Piece, pieces
from weights.checkpoint.safetensors_header import TensorEntry
from weights.config.family import UNEMBEDDING_TENSOR, Family, Source
from weights.errors import CheckpointError
from weights.formats import FORMATS, from_safetensors
from weights.inventory import Parameter, inventory
from weights.spec import ModelSpec
from weights.strict_json import shown

_NAMES_SHOWN = 6
_NO_UNEMBEDDING = (
    "without an unembedding the model cannot choose a token (transformers would initialize one "
    "at random): save it "
    "with its head, or set config.json's tie_word_embeddings to true if its embedding is the head"
)


@dataclass(frozen=True, slots=True)
class Placement:
    """One tensor to read, its pieces in the order of its output channels. ``transposed``: the file
    holds [in, out]."""

    entry: TensorEntry
    pieces: tuple[Piece, ...]
    transposed: bool

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that the tensor holds, each once."""
        return tuple(dict.fromkeys(piece.parameter for piece in self.pieces))


@dataclass(frozen=True, slots=True)
class SkippedTensor:
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Matching:
    """``tied_copies`` are the unembedding and the embedding where a tied checkpoint has both: their
    bytes must agree. ``unprefixed`` says that the names lack the family's prefix."""

    placements: tuple[Placement, ...]
    skipped: tuple[SkippedTensor, ...]
    tied_copies: tuple[TensorEntry, TensorEntry] | None
    unprefixed: bool

    @property
    def bytes_to_read(self) -> int:
        placed = sum(placement.entry.nbytes for placement in self.placements)
        return placed + sum(entry.nbytes for entry in self.tied_copies or ())


def match(checkpoint: Checkpoint, family: Family, spec: ModelSpec) -> Matching:
    """Where every parameter of ``spec`` comes from.

    Raises CheckpointError naming file and tensor.
    """
    entries, unprefixed = _canonical(checkpoint, family)
    placements: list[Placement] = []
    missing: list[str] = []
    for wanted in _expected(family, spec):
        entry = entries.pop(wanted.name, None)
        if entry is None:
            missing.append(family.their_name(wanted.name, checkpoint.tensors))
        else:
            placements.append(_place(entry, wanted))
    unembedding = entries.pop(UNEMBEDDING_TENSOR, None) if spec.tied_unembedding else None
    skipped, unexpected = _skip(entries, family, spec)
    skipped += _skipped_by_prefix(checkpoint, family)
    if missing or unexpected:
        raise _mismatch(checkpoint, missing, unexpected)
    tied_copies = None
    if unembedding is not None:
        skipped.append(SkippedTensor(unembedding.name, "tied: the embedding is used"))
        tied_copies = _tied_copies(unembedding, placements[0].entry)
    return Matching(tuple(placements), tuple(skipped), tied_copies, unprefixed)


def _canonical(checkpoint: Checkpoint, family: Family) -> tuple[dict[str, TensorEntry], bool]:
    """Tensors by the family's full names, and whether some name lacked the prefix."""
    entries: dict[str, TensorEntry] = {}
    unprefixed = False
    for name, entry in checkpoint.tensors.items():
        if family.skipped_prefix(name) is not None:
            continue
        full = family.full_name(name)
        unprefixed |= full == family.prefix + name
        other = entries.setdefault(full, entry)
        if other is not entry:
            raise CheckpointError(
                f"{entry.file}: tensors {shown(other.name)} and {shown(name)} are the same "
                "parameter"
            )
    return entries, unprefixed


@dataclass(frozen=True, slots=True)
class _Expected:
    """A tensor that ``spec`` needs. ``head`` is the one of its target that it holds, None for all
    of them."""

    name: str
    source: Source
    targets: tuple[Parameter, ...]
    head: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.targets[0].shape
        if self.head is not None:
            return first[1:]
        shape = (sum(target.shape[0] for target in self.targets), *first[1:])
        return shape[::-1] if self.source.transposed else shape


def _expected(family: Family, spec: ModelSpec) -> Iterator[_Expected]:
    """The tensors that ``spec`` needs, in the inventory's order of their first parameter."""
    parameters = {parameter.name: parameter for parameter in inventory(spec)}
    order = {name: index for index, name in enumerate(parameters)}
    found: list[_Expected] = []
    for source in family.sources:
        layers: Sequence[int] = range(spec.num_layers) if "{i}" in source.pattern else (0,)
        for index in layers:
            names = [target.replace("{i}", str(index)) for target in source.targets]
            if all(name in parameters for name in names):
                targets = tuple(parameters[name] for name in names)
                found += _of_heads(source.pattern.replace("{i}", str(index)), source, targets)
    found.sort(key=lambda item: order[item.targets[0].name])
    yield from found


def _of_heads(pattern: str, source: Source, targets: tuple[Parameter, ...]) -> Iterator[_Expected]:
    """The one tensor of that name, or one for each head."""
    if "{head}" not in pattern:
        yield _Expected(pattern, source, targets)
        return
    for head in range(targets[0].heads):
        yield _Expected(pattern.replace("{head}", str(head)), source, targets, head)


def _place(entry: TensorEntry, wanted: _Expected) -> Placement:
    where = f"{entry.file}: tensor {shown(entry.name)}"
    one_number = entry.shape == () and wanted.shape == (1,)
    if entry.shape != wanted.shape and not one_number:
        raise CheckpointError(
            f"{where} has the shape {list(entry.shape)}; config.json asks for {list(wanted.shape)}"
        )
    if from_safetensors(entry.dtype) is None:
        served = ", ".join(fmt.safetensors_name for fmt in FORMATS.values())
        raise CheckpointError(f"{where} has the dtype {entry.dtype}; served: {served}")
    parts = pieces(wanted.source, wanted.targets, wanted.head)
    return Placement(entry, parts, wanted.source.transposed)


def _skip(
    entries: dict[str, TensorEntry], family: Family, spec: ModelSpec
) -> tuple[list[SkippedTensor], list[TensorEntry]]:
    """The tensors left over: those that the family knows to be no parameters, and the rest."""
    reasons: dict[str, str] = {}
    for skip in family.skips:
        layers: Sequence[int] = range(spec.num_layers) if "{i}" in skip.pattern else (0,)
        for index in layers:
            reasons[skip.pattern.replace("{i}", str(index))] = skip.reason
    skipped = [
        SkippedTensor(entry.name, reasons[name])
        for name, entry in entries.items()
        if name in reasons
    ]
    return skipped, [entry for name, entry in entries.items() if name not in reasons]


def _skipped_by_prefix(checkpoint: Checkpoint, family: Family) -> list[SkippedTensor]:
    """A line for each prefix, however many tensors begin with it."""
    prefixes = Counter(map(family.skipped_prefix, checkpoint.tensors))
    return [
        SkippedTensor(f"{prefix}* ({count} tensors)", family.skipped_prefixes[prefix])
        for prefix, count in prefixes.items()
        if prefix is not None
    ]


def _mismatch(
    checkpoint: Checkpoint, missing: list[str], unexpected: list[TensorEntry]
) -> CheckpointError:
    parts: list[str] = []
    if missing:
        parts.append(f"missing tensors: {_some(missing)}")
    if UNEMBEDDING_TENSOR in missing:
        parts.append(_NO_UNEMBEDDING)
    if unexpected:
        names = [entry.name for entry in unexpected]
        parts.append(f"unexpected tensors: {_some(names)}")
    file = unexpected[0].file if unexpected and not missing else checkpoint.weights_file
    return CheckpointError(f"{file}: {'; '.join(parts)}")


def _some(names: list[str]) -> str:
    some = ", ".join(shown(name) for name in names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return f"{some} and {rest} more" if rest > 0 else some


def _tied_copies(
    unembedding: TensorEntry, embedding: TensorEntry
) -> tuple[TensorEntry, TensorEntry]:
    if (unembedding.shape, unembedding.dtype) != (embedding.shape, embedding.dtype):
        raise tied_copies_differ(unembedding, embedding)
    return unembedding, embedding


def tied_copies_differ(unembedding: TensorEntry, embedding: TensorEntry) -> CheckpointError:
    """Two meanings, and implementations disagree on which holds: the owner must say."""
    return CheckpointError(
        f"{unembedding.file}: tensor {shown(unembedding.name)} differs from "
        f"{shown(embedding.name)} although config.json's tie_word_embeddings is true; "
        "set it to false, or remove the tensor"
    )

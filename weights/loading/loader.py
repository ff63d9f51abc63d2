"""Streams a checkpoint into memory: checks, reads, converts, fuses, packs; strict throughout.

Peak memory: what is held at the end, plus one staging chunk (LoadReport.peak_transient_bytes), plus
what ``pack`` allocates for one matrix where it does not keep the tensor that it is given. A matrix
that is to be quantised exists in the plain format until it is packed: that is counted too. The
largest, those outside layers, are read first, while there is room for it. Files
are read with pread, so nothing stays mapped. On a GPU the pinned buffers of
weights.loading.pinned_reader stand in for the staging chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from math import prod
from typing import Generic, Protocol, TypeVar

import torch

from weights import families
from weights.checkpoint.folder import Checkpoint
from weights.checkpoint.matching import (
    Matching,
    Placement,
    SkippedTensor,
    match,
    tied_copies_differ,
)
from weights.formats import get_format, get_quantised
from weights.inventory import QUANTISABLE, Component, Parameter, held_format, inventory
from weights.loading.fusion import FusedLinear, fused_linears, held_name, plain_tensors
from weights.loading.pinned_reader import CopyStream, PinnedReader
from weights.loading.tensor_reader import TensorReader, torch_dtype
from weights.spec import ModelSpec

Progress = Callable[[int, int], None]  # bytes read so far, bytes to read
_Packed = TypeVar("_Packed")
_PackedOut = TypeVar("_PackedOut", covariant=True)


class Pack(Protocol[_PackedOut]):
    """Turns a [out, in] matrix and its [out] bias into what the kernels multiply with."""

    def __call__(
        self, weight: torch.Tensor, format: str, bias: torch.Tensor | None = None
    ) -> _PackedOut: ...


@dataclass(frozen=True, slots=True)
class LoadReport:
    """``tensors`` counts those read into parameters; ``peak_transient_bytes`` were allocated beside
    what is held, at most, at one time; ``unprefixed``: the file's names lack the family's
    prefix."""

    format: str
    tensors: int
    bytes_read: int
    seconds: float
    peak_transient_bytes: int
    skipped: tuple[SkippedTensor, ...]
    unprefixed: bool


@dataclass(frozen=True, slots=True)
class LoadedModel(Generic[_Packed]):
    """``linears`` by the names of weights.loading.fusion, packed; ``tensors``: tables and norms. A
    tied embedding that is quantised, or whose table is packed, is the unembedding alone."""

    linears: dict[str, _Packed]
    tensors: dict[str, torch.Tensor]
    report: LoadReport


def load(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    *,
    format: str,
    quantization: str | None = None,
    quantised: Container[str] = QUANTISABLE,
    packs_tables: bool = False,
    device: torch.device | str = "cpu",
    pack: Pack[_Packed],
    progress: Progress | None = None,
    copies: CopyStream | None = None,
) -> LoadedModel[_Packed]:
    """Every parameter of ``spec`` in ``format`` on ``device``.

    With a ``quantization``, the matrices of ``quantised`` components are packed in that format
    instead; their biases keep ``format``. Each matrix is packed as soon as it was read, so
    ``progress`` tells of both. ``packs_tables`` says that a tied embedding is wanted as the packed
    unembedding only. ``copies`` are a GPU's: tensors then pass through pinned memory; without, they
    are read into place. Either way several threads read.

    Raises CheckpointError, before any tensor is read, where tensors are missing, unexpected or of
    the wrong shape; ValueError for a format that there is not.
    """
    get_format(format)
    if quantization is not None:
        get_quantised(quantization)
    started = time.monotonic()
    matching = match(checkpoint, families.resolve(checkpoint.config), spec)
    counter = _ByteCounter(matching.bytes_to_read, progress)
    assembly = _Assembly(
        spec, format, quantization, quantised, torch.device(device), pack, packs_tables
    )
    with _reader(checkpoint, counter.add, copies) as reader:
        _check_tied_copies(matching, reader)
        for placement in sorted(matching.placements, key=assembly.turn):
            names = placement.parameters
            reader.fill(placement, {name: assembly.view(name) for name in names})
            if assembly.would_pack(names):
                reader.settle()
            for name in names:
                assembly.complete(name)
        reader.settle()
        staging_bytes = reader.staging_bytes
    linears, tensors = assembly.finish()
    report = LoadReport(
        format=format,
        tensors=len(matching.placements),
        bytes_read=counter.done,
        seconds=time.monotonic() - started,
        peak_transient_bytes=staging_bytes + assembly.peak_unpacked_bytes,
        skipped=matching.skipped,
        unprefixed=matching.unprefixed,
    )
    return LoadedModel(linears, tensors, report)


def _reader(
    checkpoint: Checkpoint, on_bytes: Callable[[int], None], copies: CopyStream | None
) -> TensorReader:
    if copies is None:
        return TensorReader(checkpoint, on_bytes)
    return PinnedReader(checkpoint, on_bytes, copies)


def _check_tied_copies(matching: Matching, reader: TensorReader) -> None:
    if matching.tied_copies is not None and not reader.equal(*matching.tied_copies):
        raise tied_copies_differ(*matching.tied_copies)


class _ByteCounter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done = 0
        self._total = total
        self._progress = progress

    def add(self, count: int) -> None:
        self.done += count
        if self._progress is not None:
            self._progress(self.done, self._total)


class _Assembly(Generic[_Packed]):
    """Parameters in their final places. A fused tensor is allocated when its first part arrives
    and packed when its last one is complete, whatever file or order the parts come in."""

    def __init__(
        self,
        spec: ModelSpec,
        format: str,
        quantization: str | None,
        quantised: Container[str],
        device: torch.device,
        pack: Pack[_Packed],
        packs_tables: bool,
    ) -> None:
        self._spec = spec
        self._format = format
        self._quantization = quantization
        self._quantised = quantised
        self._device = device
        self._pack = pack
        self._parameters = {parameter.name: parameter for parameter in inventory(spec)}
        linears = fused_linears(spec)
        packs_tables |= self._held_format(Component.EMBEDDING) != format
        if spec.tied_unembedding and packs_tables:
            linears += (FusedLinear("unembedding", ("embedding",)),)
        self._owners = {part: linear for linear in linears for part in linear.parts}
        self._waiting = {
            linear.name: sum(name.rpartition(".")[0] in linear.parts for name in self._parameters)
            for linear in linears
        }
        self._open: dict[str, torch.Tensor] = {}
        self._plain: dict[str, torch.Tensor] = {}
        self._linears: dict[str, _Packed] = {}
        self._spare: torch.Tensor | None = None  # the last layer's matrix that was quantised
        self.peak_unpacked_bytes = 0  # most of matrices that wait to be quantised

    def turn(self, placement: Placement) -> tuple[int, bool]:
        """When to read it, by a stable sort: what is outside layers first, the largest before all,
        and of equals what is packed, since that may take as much again meanwhile."""
        names = placement.parameters
        if not _is_outside(names[0]):
            return 0, False
        return -placement.entry.nbytes, not self.would_pack(names)

    def view(self, name: str) -> torch.Tensor:
        """The place of parameter ``name``, in its parameter's shape."""
        parameter = self._parameters[name]
        part, _, kind = name.rpartition(".")
        linear = self._owners.get(part)
        if linear is None:
            if name not in self._plain:
                self._plain[name] = self._empty(parameter.shape)
            return self._plain[name]
        fused = f"{linear.name}.{kind}"
        members = [self._parameters[f"{member}.{kind}"] for member in linear.parts]
        if fused not in self._open:
            rows = sum(member.shape[0] for member in members)
            self._open[fused] = self._room((rows, *parameter.shape[1:]))
            if self._quantization is not None:
                unpacked = sum(tensor.nbytes for tensor in self._open.values())
                self.peak_unpacked_bytes = max(self.peak_unpacked_bytes, unpacked)
        start = _rows_before(members, name)
        return self._open[fused][start : start + parameter.shape[0]]

    def would_pack(self, names: tuple[str, ...]) -> bool:
        """Completing these may pack a matrix, which reads its values."""
        return any(name.rpartition(".")[0] in self._owners for name in names)

    def complete(self, name: str) -> None:
        """Says that ``name`` has its values; packs its matrix when it was the last to come."""
        linear = self._owners.get(name.rpartition(".")[0])
        if linear is None:
            return
        self._waiting[linear.name] -= 1
        if not self._waiting[linear.name]:
            self._linears[linear.name] = self._pack_fused(linear)

    def finish(self) -> tuple[dict[str, _Packed], dict[str, torch.Tensor]]:
        """(packed linears, plain tensors by the names that the model uses)."""
        if self._spec.tied_unembedding and "embedding" not in self._owners:
            # The same storage: a tied unembedding costs nothing where the format allows.
            table = self._plain["embedding.weight"]
            self._linears["unembedding"] = self._pack(table, self._format)
        names = (
            name
            for name in plain_tensors(self._spec)
            if name.rpartition(".")[0] not in self._owners
        )
        return self._linears, {held_name(name): self._plain[name] for name in names}

    def _pack_fused(self, linear: FusedLinear) -> _Packed:
        weight = self._open.pop(f"{linear.name}.weight")
        bias = self._open.pop(f"{linear.name}.bias", None)
        first = self._parameters[f"{linear.parts[0]}.weight"]
        held = self._held_format(first.component)
        packed = self._pack(weight, held, bias)
        # A GPU's would be written while the kernels that quantise may still read it.
        if held != self._format and weight.is_cpu and not _is_outside(linear.name):
            self._keep(weight)
        return packed

    def _room(self, shape: tuple[int, ...]) -> torch.Tensor:
        """For a matrix or a bias: where a matrix was that has been quantised, if it is as large.

        Taken and given back each time, such memory would leave holes in malloc's arena."""
        spare, size = self._spare, prod(shape)
        if spare is None or spare.numel() < size or len(shape) < 2:
            return self._empty(shape)
        self._spare = None
        return spare[:size].view(shape)

    def _keep(self, weight: torch.Tensor) -> None:
        whole = weight.new_empty(0).set_(weight.untyped_storage())
        if self._spare is None or self._spare.numel() < whole.numel():
            self._spare = whole

    def _held_format(self, component: str) -> str:
        return held_format(component, self._format, self._quantization, self._quantised)

    def _empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch_dtype(self._format), device=self._device)


def _is_outside(name: str) -> bool:
    """Of a parameter or a matrix: it is of no layer."""
    return not name.startswith("layers.")


def _rows_before(members: list[Parameter], name: str) -> int:
    rows = 0
    for member in members:
        if member.name == name:
            break
        rows += member.shape[0]
    return rows

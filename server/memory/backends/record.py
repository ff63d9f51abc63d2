"""One record for each backend: what a model runs on, and all that follows from it.

A further backend is one such record and a folder of its own: options, placement, plans, buffers,
the memory account and the runner ask the record, and nobody asks for a backend's name. Every
command reads the records, so they need the standard library only; what a record names as
"module:object" is imported when it is first used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.memory.backends.parts import Parts
    from weights.formats import QuantisedFormat


class Unusable(Exception):
    """Why a backend cannot compute here, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """What a backend would compute on, and its memory now, in bytes.

    Of what is free, ``runtime`` is kept for what no list of buffers knows, and ``slack`` for what
    an allocator rounds up: estimates.
    """

    title: str  # for people
    total: int
    free: int
    runtime: int
    slack: int = 0

    @property
    def available(self) -> int:
        """For weights, cache and buffers; below 0 where not even the runtime fits."""
        return self.free - self.runtime - self.slack


@dataclass(frozen=True, slots=True)
class Defaults:
    """What sizes come to where the operator leaves them open. Tokens and sequences.

    ``thread_step_flops`` are the floating-point operations that a thread is given in one step: of a
    model that asks for more, a step has fewer than ``max_num_batched_tokens``
    (server.memory.planner.resolve_args).
    """

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    thread_step_flops: int | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """What a model runs on.

    ``name`` is the backend's own, ``device`` what --device, /memory and the metrics call what it
    runs on, and ``place`` what a message does ("a GPU"): several backends may have one device.
    ``preference`` is the order in which --device auto tries them, the largest first, and a device's
    name those of that device; None is taken where --backend names it, or where its device has no
    other.
    ``found_where`` ends the sentence that auto takes the device where ...

    ``find`` is () -> FoundDevice, and raises Unusable with the reason where the backend cannot
    compute here; ``parts_at`` is a server.memory.backends.parts.Parts. Both need no torch.
    ``device_at``, ``open_device`` and ``decoder_at`` are imported by the engine process only: they
    need it. ``level_at`` is (name or None) -> None, of a backend with several instruction levels;
    it raises Unusable. ``packs_tables`` says that the decoder reads a tied embedding from the
    packed unembedding, so that the table is held once.
    """

    name: str
    device: str
    place: str
    preference: int | None
    found_where: str
    find: str
    parts_at: str
    device_at: str  # () -> server.execution.device.Device
    open_device: str  # (EngineConfig, model folder) -> OpenedDevice, before the model
    defaults: Defaults
    equal_bits: str  # what promises equal requests more than 16 bits do
    auto_dtype: str  # in words, what Parts.auto_format does
    decoder_at: str = "server.execution.model:build_decoder"
    level_at: str | None = None  # see ``check_level``
    quantisations: tuple[str, ...] = ()  # that --quantization may name
    suggested_quantisations: tuple[str, ...] = ()  # of these, when memory is short
    kv_formats: tuple[str, ...] = ()  # that --kv-cache-dtype may name: none, the model's alone
    packed_formats: tuple[QuantisedFormat, ...] = ()  # that no other backend knows
    batch_invariant: bool = False  # whether --batch-invariant is served
    bit_equal: bool = False  # an answer is the same bits in any batch, unasked
    captures_graphs: bool = False
    compiles_kernels: bool = False  # when a form of one is first run
    own_memory: bool = False  # the device has memory of its own, which nothing else needs
    weighs_dtype: bool = False  # 16-bit products may be slower than float32's: auto times them
    packs_tables: bool = False
    unlike_heads: bool = False  # layers may have heads of two sizes, which share pages
    max_head_dim: int | None = None
    head_dim_multiple: int = 1
    max_kv_groups: int | None = None  # that one step can name
    max_width: int | None = None  # of a row that is normalised
    max_decode_steps: int = 1  # tokens that one plan may give a row

    def __post_init__(self) -> None:
        missing = set(self.suggested_quantisations) - set(self.quantisations)
        if missing:
            raise ValueError(f"{self.name} suggests {sorted(missing)}, which it does not serve")

    @property
    def parts(self) -> Parts:
        """What plans, the memory account and the runner need of it. Imported when first asked."""
        parts: Parts = self.load(self.parts_at)
        return parts

    def find_device(self) -> FoundDevice:
        """The device as it is now. Raises Unusable."""
        found: FoundDevice = self.load(self.find)()
        return found

    def check_level(self, asked: str | None) -> None:
        """That the instruction level that was asked for runs here, or where none was, one that the
        backend takes by itself; ``level_at`` says of that. Raises Unusable."""
        if self.level_at is not None:
            self.load(self.level_at)(asked)
        elif asked is not None:
            raise Unusable("its instruction level cannot be chosen")

    def load(self, where: str) -> Any:
        """The object "module:object" of this record."""
        module, _, name = where.partition(":")
        return getattr(import_module(module), name)

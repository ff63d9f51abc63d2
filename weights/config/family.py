"""What a family is: data that turns a published folder's words into ours.

A family file holds a reader (config.json -> ModelSpec), the checkpoint's tensor names as patterns,
and the names that published folders carry although they are no parameters. ``{i}`` in a pattern
stands for the layer index. Shapes are not written down: they follow from the inventory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from weights.config.facts import ConfigReader
from weights.spec import Activation, ModelSpec

_UNEMBEDDING_PREFIX = "lm_head."
UNEMBEDDING_TENSOR = f"{_UNEMBEDDING_PREFIX}weight"

# transformers' names of the exact function, and of the one by tanh, which it spells in many ways.
GELU_NAMES = {
    "gelu": Activation.GELU_ERF,
    "gelu_python": Activation.GELU_ERF,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_accurate": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_python_tanh": Activation.GELU_TANH,
}


@dataclass(frozen=True, slots=True)
class Source:
    """One checkpoint tensor and the parameters that it holds.

    Several targets are stacked along the output dimension in the order given; ``by_kv_head`` says
    that instead each key-value head's part of them is, one head after the other
    (weights.checkpoint.pieces). ``transposed`` says that the file holds [in, out] instead of
    [out, in]. A pattern with ``{head}`` is of one tensor for each head of its one target, whose row
    it is.
    """

    pattern: str
    targets: tuple[str, ...]
    transposed: bool = False
    by_kv_head: bool = False


@dataclass(frozen=True, slots=True)
class Skip:
    """A tensor of published folders that is not a parameter, and why it is not read."""

    pattern: str
    reason: str


# The sizes that a config.json cannot leave out, as most families call them.
SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
)


@dataclass(frozen=True, slots=True)
class Family:
    """``prefix`` begins the name of every tensor but the unembedding's; files saved from the bare
    decoder lack it. ``other_names`` are architectures that mean the same: an older spelling, and
    the bare decoder. ``harmless`` are keys of config.json that never change the arithmetic.
    ``sizes`` are a smallest config.json, whose other facts are the family's defaults. ``renames``
    are pairs of prefixes, a file's and the one that ``sources`` know, ``synonyms`` pairs of parts
    anywhere in a name, of which a folder has one or the other; tensors whose names begin
    with one of ``skipped_prefixes`` are not read, for the reason that it maps to. ``own_code`` are
    classes, "module.Class", that published folders bring although they are this family's
    arithmetic: transformers took them in, and itself passes the folder's copy by."""

    name: str
    architecture: str
    other_names: tuple[str, ...]
    model_type: str
    prefix: str
    sources: tuple[Source, ...]
    skips: tuple[Skip, ...]
    harmless: frozenset[str]
    read: Callable[[ConfigReader], ModelSpec]
    sizes: Mapping[str, Any] = field(default_factory=lambda: SIZES)
    renames: tuple[tuple[str, str], ...] = ()
    synonyms: tuple[tuple[str, str], ...] = ()
    skipped_prefixes: Mapping[str, str] = field(default_factory=dict)
    own_code: frozenset[str] = frozenset()

    @property
    def architectures(self) -> tuple[str, ...]:
        """Every name that a config.json may give it."""
        return (self.architecture, *self.other_names)

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """Every architectural fact of ``config``.

        Raises CheckpointError that names the key: missing, mistyped, absurd, contradictory, or
        asking for arithmetic that is not served.
        """
        return self._read(config)[0]

    def unread_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Keys of ``config`` that mean nothing to this family and were judged harmless by the rule
        in weights.config.facts; worth a line at start."""
        return self._read(config)[1]

    def full_name(self, name: str) -> str:
        """A tensor's name as ``sources`` know it."""
        for theirs, ours in self.synonyms:
            name = name.replace(theirs, ours)
        for theirs, ours in self.renames:
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        if name.startswith((self.prefix, _UNEMBEDDING_PREFIX)):
            return name
        return self.prefix + name

    def their_name(self, name: str, present: Iterable[str]) -> str:
        """A name that ``sources`` know, in the words of a folder that has the names ``present``."""
        for theirs, ours in self.synonyms:
            if ours in name and any(theirs in one for one in present):
                return name.replace(ours, theirs)
        return name

    def skipped_prefix(self, name: str) -> str | None:
        """The prefix for which a tensor is not read; None where it is looked at."""
        return next((one for one in self.skipped_prefixes if name.startswith(one)), None)

    def keys(self) -> frozenset[str]:
        """The keys of config.json that mean something to this family."""
        facts = ConfigReader(self.sizes, self.architecture)
        self.read(facts)
        return facts.keys_read

    def _read(self, config: Mapping[str, Any]) -> tuple[ModelSpec, tuple[str, ...]]:
        facts = ConfigReader(config, self.architecture)
        spec = self.read(facts)
        return spec, facts.finish(self.harmless)

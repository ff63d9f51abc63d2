"""The census: how many matrices and parameters each component has.

Counting rule: each head's query, key and value is one matrix, so a layer has ``num_query_heads``
query matrices and ``num_kv_heads`` key and as many value matrices; the output projection is one
matrix a layer, and each expert's matrices count by themselves. Norms, biases and learned positions
are no matrices: they have lines of their own, with 0 matrices, outside the matrix totals. Tied
weights are counted once, as the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weights.inventory import Component, tally
from weights.spec import ModelSpec

_NO_MATRIX = frozenset({Component.NORM, Component.BIAS, Component.POSITION})


@dataclass(frozen=True, slots=True)
class Count:
    matrices: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Census:
    """Components in the order of ``Component``, those that the model lacks left out."""

    components: Mapping[Component, Count]

    @property
    def matrices(self) -> int:
        return sum(count.matrices for count in self.components.values())

    @property
    def matrix_parameters(self) -> int:
        """Elements of matrices alone."""
        return sum(count.parameters for count in self.components.values() if count.matrices)

    @property
    def parameters(self) -> int:
        """Elements of everything: matrices, norms, biases and positions."""
        return sum(count.parameters for count in self.components.values())


def census(spec: ModelSpec) -> Census:
    """Counts of matrices and parameters by component."""
    counts: dict[Component, Count] = {}
    for parameter, times in tally(spec).items():
        component = parameter.component
        matrices = 0 if component in _NO_MATRIX else times * max(1, parameter.heads)
        before = counts.get(component, Count(0, 0))
        counts[component] = Count(
            before.matrices + matrices, before.parameters + times * parameter.num_elements
        )
    return Census({component: counts[component] for component in Component if component in counts})

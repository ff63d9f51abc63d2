"""Before the base reading on a CPU: the libraries take what they keep.

Threads and the libraries' scratch belong to the runtime and not to the model.
"""

from __future__ import annotations

import math

import torch

import kernels
from kernels.product_forms import MANY_ROWS, padded_sizes
from server.execution.buffers import dtype_of
from server.memory.layout import RunnerConfig
from weights.fusion import fused_linears
from weights.inventory import inventory
from weights.spec import ModelSpec

_WARM_SIZE = 1024  # rows and columns of the first product, for which the libraries set up
_WARM_ROWS = 256  # of the products that follow: many, as their forms go


def warm_libraries(config: RunnerConfig, spec: ModelSpec) -> None:
    """Products of the shapes to come.

    The weights are never written, so that large ones are pages of zeros that take no memory.
    """
    tokens = min(config.max_num_batched_tokens, _WARM_SIZE)
    for rows in (tokens, 1):
        _product(rows, torch.empty(_WARM_SIZE, _WARM_SIZE))
    shapes = sorted(_product_shapes(config, spec).items(), key=lambda item: -math.prod(item[0]))
    for shape, most_rows in shapes:  # the largest first: what is kept for it serves the others
        weight = torch.empty(shape, dtype=dtype_of(config.format))
        _product(min(most_rows, _WARM_ROWS), weight, config.format)
        if config.format != "f32":
            for rows in padded_sizes(min(most_rows, MANY_ROWS - 1)):
                _product(rows, weight, config.format)


def _product(rows: int, weight: torch.Tensor, format: str = "f32") -> None:
    x = torch.zeros(rows, weight.shape[1], dtype=weight.dtype)
    kernels.linear(x, kernels.pack_linear(weight, format))


def _product_shapes(config: RunnerConfig, spec: ModelSpec) -> dict[tuple[int, int], int]:
    """[out, in] of every matrix that the model multiplies by, and the most rows it meets."""
    shapes = {parameter.name: parameter.shape for parameter in inventory(spec)}
    found = {(spec.vocab_size, spec.hidden_size): config.logit_rows}
    for linear in fused_linears(spec):
        parts = [shapes[f"{part}.weight"] for part in linear.parts]
        shape = (sum(part[0] for part in parts), parts[0][1])
        if linear.name != "unembedding":
            found[shape] = config.max_num_batched_tokens
    return found

"""Before the base reading on a CPU: the libraries take what they keep.

Threads and the libraries' scratch belong to the runtime and not to the model.
"""

from __future__ import annotations

import torch

import kernels
from kernels.product_forms import MANY_ROWS, padded_sizes
from server.execution.buffers import dtype_of
from server.memory.layout import RunnerConfig
from weights.fusion import fused_linears
from weights.inventory import inventory
from weights.spec import ModelSpec

# Rows, inner and outer sizes of the products that make the libraries set themselves up. What a
# float32 product keeps, a panel of each operand, grows with the outer size, to some 15 MiB here.
_WARM_ROWS, _WARM_INNER, _WARM_OUTER = 512, 512, 12_288


def warm_libraries(config: RunnerConfig, spec: ModelSpec) -> None:
    """Products of the shapes to come.

    The weights are never written, so that large ones are pages of zeros that take no memory.
    """
    outer = min(_WARM_OUTER, max(shape[0] for shape in _product_shapes(config, spec)))
    for rows in (min(config.max_num_batched_tokens, _WARM_ROWS), 1):
        _product(rows, torch.empty(outer, _WARM_INNER))
    if config.format == "f32":
        return
    for shape, most_rows in _product_shapes(config, spec).items():
        weight = torch.empty(shape, dtype=dtype_of(config.format))
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

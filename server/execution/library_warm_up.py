"""Before the base reading on a CPU: the libraries take what they keep.

Threads and the libraries' scratch belong to the runtime and not to the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

import kernels
from kernels.footprint.linear import MANY_ROWS, padded_sizes
from server.engine.engine_config import EngineConfig
from server.execution.buffers import dtype_of
from weights.inventory import inventory
from weights.loading.fusion import fused_linears
from weights.spec import ModelSpec

_WARM_SIZE = 1024  # rows and columns of the first product, for which the libraries set up
_WARM_ROWS = 512  # of the products that follow: many, as their forms go
# MKL packs both factors of a wide float32 product of some rows into buffers that it keeps, for each
# thread; the largest are taken just below 384 rows divided among the threads (1 and 2, AVX-512).
_PACKED_ROWS = (380, 188, 92, 44)


def warm_libraries(config: EngineConfig, spec: ModelSpec) -> None:
    """Products of the shapes to come.

    The weights are never written, so that large ones are pages of zeros that take no memory.
    """
    tokens = min(config.scheduler.max_num_batched_tokens, _WARM_SIZE)
    for rows in (tokens, 1):
        _product(rows, torch.empty(_WARM_SIZE, _WARM_SIZE))
    products = sorted(_products(config, spec), key=lambda one: -math.prod(one.shape))
    for product in products:  # the largest first: what is kept for it serves the others
        weight = torch.empty(product.shape, dtype=dtype_of(config.model.format))
        bias = torch.zeros(product.shape[0], dtype=weight.dtype) if product.has_bias else None
        for rows in sorted(_sizes(config, product.most_rows), reverse=True):
            _product(rows, weight, config.model.format, bias)


def _sizes(config: EngineConfig, most_rows: int) -> set[int]:
    """Numbers of rows that meet each form of a product once; of 16 bits, each padded size."""
    many = min(most_rows, _WARM_ROWS)
    if config.model.format == "f32":
        return {many, *(size for size in _PACKED_ROWS if size < many)}
    few = min(most_rows, MANY_ROWS - 1)  # one more would take the form of many
    return {1, many, few, *(size for size in padded_sizes(few) if size <= few)}


def _product(
    rows: int, weight: torch.Tensor, format: str = "f32", bias: torch.Tensor | None = None
) -> None:
    x = torch.zeros(rows, weight.shape[1], dtype=weight.dtype)
    kernels.linear(x, kernels.pack_linear(weight, format, bias))


@dataclass(frozen=True, slots=True)
class _Product:
    shape: tuple[int, int]  # [out, in]
    most_rows: int
    has_bias: bool


def _products(config: EngineConfig, spec: ModelSpec) -> set[_Product]:
    """Every matrix that the model multiplies by, those alike once."""
    shapes = {parameter.name: parameter.shape for parameter in inventory(spec)}
    found = {_Product((spec.vocab_size, spec.table_width), config.scheduler.logit_rows, False)}
    for linear in fused_linears(spec):
        parts = [shapes[f"{part}.weight"] for part in linear.parts]
        shape = (sum(part[0] for part in parts), parts[0][1])
        if linear.name != "unembedding":
            has_bias = f"{linear.parts[0]}.bias" in shapes
            found.add(_Product(shape, config.scheduler.max_num_batched_tokens, has_bias))
    return found

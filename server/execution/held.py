"""What a runner holds, measured: bytes of live distinct storages, never a formula."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch

from kernels import AttentionWorkspace, LinearWeight
from server.memory.backends.registry import backend_named
from server.memory.kinds import MemoryKind
from server.memory.layout import Layout
from weights.inventory import Parameter, inventory
from weights.loading.fusion import fused_linears
from weights.spec import ModelSpec


class Loaded(Protocol):
    @property
    def linears(self) -> Mapping[str, LinearWeight]: ...

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]: ...


class HeldBytes:
    """Measures weights by component, and persistent buffers by kind, whenever asked.

    A storage counts once, for the first that holds it: a tied unembedding adds nothing. A fused
    linear's bytes are divided over its parameters by their planned sizes; what pads it is its last
    matrix's.
    """

    def __init__(
        self,
        model: ModelSpec,
        layout: Layout,
        loaded: Loaded,
        buffers: Mapping[str, torch.Tensor],
        workspace: AttentionWorkspace,
    ) -> None:
        self._parameters = {parameter.name: parameter for parameter in inventory(model)}
        self._parts = {linear.name: linear.parts for linear in fused_linears(model)}
        self._layout = layout
        self._loaded = loaded
        self._buffers = buffers
        self._workspace = workspace

    def weights(self) -> dict[str, int]:
        """Bytes by component of the inventory."""
        seen: set[int] = set()
        totals: dict[str, int] = {}
        for name, tensor in self._loaded.tensors.items():
            parameter = self._parameters.get(name) or self._parameters[f"{name}.weight"]
            self._add(totals, (parameter,), _new_bytes([tensor.untyped_storage()], seen))
        for name, linear in self._loaded.linears.items():
            nbytes = _new_bytes(linear.storages(), seen)
            if nbytes:
                self._add(totals, self._parameters_of(name), nbytes)
        return totals

    def by_kind(self) -> dict[MemoryKind, int]:
        """Bytes of weights, KV cache, io and workspace."""
        totals = {MemoryKind.WEIGHTS: sum(self.weights().values())}
        seen: set[int] = set()
        for name, tensor in self._buffers.items():
            kind = self._layout.buffer(name).kind
            totals[kind] = totals.get(kind, 0) + _new_bytes([tensor.untyped_storage()], seen)
        totals[MemoryKind.WORKSPACE] = self._workspace.buffer.untyped_storage().nbytes()
        return totals

    def _add(self, totals: dict[str, int], parameters: tuple[Parameter, ...], nbytes: int) -> None:
        """Divides ``nbytes`` over the parameters' components; the last takes the rest."""
        how = self._layout.config.model
        size_of = backend_named(how.backend).parts.parameter_bytes
        left = nbytes
        for parameter in parameters[:-1]:
            share = size_of(self._layout.model, parameter, how)
            totals[parameter.component] = totals.get(parameter.component, 0) + share
            left -= share
        last = parameters[-1].component
        totals[last] = totals.get(last, 0) + left

    def _parameters_of(self, linear: str) -> tuple[Parameter, ...]:
        parts = self._parts.get(linear, (linear,))
        wanted = [f"{part}.{kind}" for kind in ("bias", "weight") for part in parts]
        return tuple(self._parameters[name] for name in wanted if name in self._parameters)


def _new_bytes(storages: Iterable[torch.UntypedStorage], seen: set[int]) -> int:
    total = 0
    for storage in storages:
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total

"""A fake device whose kernels are the GPU's own, run by Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_device import OPERATIONS, FakeDevice

import kernels
from kernels import (
    activations,
    attention,
    embeddings,
    kv_store,
    linears,
    norm,
    sampling,
    step_inputs,
    workspace,
)
from kernels.dispatch import resolve

MODULES = (activations, attention, embeddings, kv_store, linears, norm, sampling, step_inputs)
_REAL = {name: getattr(kernels, name) for name in OPERATIONS}


def _on_gpu(operation: str, device: torch.device, *, cpu: Any, gpu: str) -> Any:
    return resolve(gpu)


def _prepare(*, shape: Any, workspace: Any, **tensors: Any) -> kernels.AttentionMetadata:
    metadata = kernels.AttentionMetadata(**tensors, work=None)
    return attention._prepared_on_device(metadata, shape, workspace)


class Workspace(kernels.AttentionWorkspace):
    """Scratch in a GPU's layout."""

    def __init__(self, shape: Any, device: Any) -> None:
        self.shape = replace(shape, on_gpu=True)
        self.nbytes = workspace.attention_workspace_bytes(self.shape)
        self.buffer = torch.empty(self.nbytes, dtype=torch.uint8)


def install(device: FakeDevice, patch: pytest.MonkeyPatch) -> None:
    """Routes every public kernel through the device to kernels.gpu."""
    for module in MODULES:
        patch.setattr(module, "select", _on_gpu)
    patch.setattr(kernels, "AttentionWorkspace", Workspace)
    for name in OPERATIONS:
        function = _prepare if name == "prepare_attention" else _REAL[name]
        patch.setattr(kernels, name, device.kernel(function))

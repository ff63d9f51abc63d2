"""Numerics: one public function for every operation, whatever the backend.

A public function checks its arguments (ValueError names the argument, what was given and what is
allowed) and hands over to the backend in use on the tensors' device. Modules are loaded when a name
is first used, so that what needs no torch (derive_key, AttentionShape, attention_workspace_bytes)
can be had without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels.attention import (
        AttentionWorkspace,
        paged_attention,
        prepare_attention,
        varlen_attention,
    )
    from kernels.backends import KernelBackend, attention_workspace_bytes
    from kernels.elementwise import (
        activation,
        add_layer_norm,
        add_rms_norm,
        embedding,
        gated_activation,
        xielu,
    )
    from kernels.footprint.attention import AttentionShape
    from kernels.kv_store import copy_blocks, gather_blocks, rotary_store_kv, scatter_blocks
    from kernels.linears import LinearWeight, linear, pack_linear
    from kernels.philox import as_int64, derive_key
    from kernels.rotary import alibi_slopes, rotary_table
    from kernels.sampling import sample, token_logprobs
    from kernels.step_inputs import commit_tokens, count_tokens, gather_step, write_rows
    from kernels.types import (
        AttentionFeatures,
        AttentionMetadata,
        SampleOutput,
        SamplingTensors,
        SparseBias,
        SparseIds,
        StepBuffers,
    )

__all__ = [
    "AttentionFeatures",
    "AttentionMetadata",
    "AttentionShape",
    "AttentionWorkspace",
    "KernelBackend",
    "LinearWeight",
    "SampleOutput",
    "SamplingTensors",
    "SparseBias",
    "SparseIds",
    "StepBuffers",
    "activation",
    "add_layer_norm",
    "add_rms_norm",
    "alibi_slopes",
    "as_int64",
    "attention_workspace_bytes",
    "commit_tokens",
    "copy_blocks",
    "count_tokens",
    "derive_key",
    "embedding",
    "gated_activation",
    "gather_blocks",
    "gather_step",
    "linear",
    "pack_linear",
    "paged_attention",
    "prepare_attention",
    "rotary_store_kv",
    "rotary_table",
    "sample",
    "scatter_blocks",
    "token_logprobs",
    "varlen_attention",
    "write_rows",
    "xielu",
]

_HOMES = {
    "attention": ("AttentionWorkspace", "paged_attention", "prepare_attention", "varlen_attention"),
    "backends": ("KernelBackend", "attention_workspace_bytes"),
    "elementwise": (
        "activation",
        "add_layer_norm",
        "add_rms_norm",
        "embedding",
        "gated_activation",
        "xielu",
    ),
    "footprint.attention": ("AttentionShape",),
    "kv_store": ("copy_blocks", "gather_blocks", "rotary_store_kv", "scatter_blocks"),
    "linears": ("LinearWeight", "linear", "pack_linear"),
    "philox": ("as_int64", "derive_key"),
    "rotary": ("alibi_slopes", "rotary_table"),
    "sampling": ("sample", "token_logprobs"),
    "step_inputs": ("commit_tokens", "count_tokens", "gather_step", "write_rows"),
    "types": (
        "AttentionFeatures",
        "AttentionMetadata",
        "SampleOutput",
        "SamplingTensors",
        "SparseBias",
        "SparseIds",
        "StepBuffers",
    ),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value  # found directly from now on
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The implementations that the operations have, one record for each. No torch.

A third one is a record like these and a folder of modules: it needs no change elsewhere. What it
leaves out of its table it declines, and who asks for that operation is told by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

from kernels.footprint.attention import AttentionShape, cpu_attention_regions
from kernels.footprint.gpu_attention import gpu_attention_regions
from kernels.footprint.native_attention import native_attention_regions


@dataclass(frozen=True, slots=True)
class KernelBackend:
    """One implementation of the operations.

    ``device_type`` is that of its tensors' device, as torch names it. ``operations`` says where
    each is, "module:function"; a module is imported when an operation of it is first used.
    ``attention_regions`` are the bytes of an AttentionWorkspace by name.
    """

    name: str
    device_type: str
    operations: Mapping[str, str]
    attention_regions: Callable[[AttentionShape], Mapping[str, int]]

    def declined(self, operations: Iterable[str]) -> tuple[str, ...]:
        """Those of ``operations`` that this backend does not have, in their order."""
        return tuple(name for name in operations if name not in self.operations)

    def implementation(self, operation: str) -> object:
        """Raises NotImplementedError, naming both, for an operation that is declined."""
        where = self.operations.get(operation)
        if where is None:
            raise NotImplementedError(f"the backend {self.name} has no {operation}")
        module, function = _home(where)
        return getattr(module, function)


@cache
def _home(where: str) -> tuple[ModuleType, str]:
    module, _, function = where.partition(":")
    return import_module(module), function


def attention_workspace_bytes(shape: AttentionShape, backend: KernelBackend) -> int:
    """Exact bytes of an AttentionWorkspace of this shape."""
    return sum(backend.attention_regions(shape).values())


TORCH_CPU = KernelBackend(
    name="cpu",
    device_type="cpu",
    operations={
        "activation": "kernels.cpu.elementwise:activation",
        "add_layer_norm": "kernels.cpu.elementwise:add_layer_norm",
        "add_rms_norm": "kernels.cpu.elementwise:add_rms_norm",
        "commit_tokens": "kernels.cpu.step_inputs:commit_tokens",
        "copy_blocks": "kernels.cpu.kv_store:copy_blocks",
        "count_tokens": "kernels.cpu.step_inputs:count_tokens",
        "embedding": "kernels.cpu.elementwise:embedding",
        "gated_activation": "kernels.cpu.elementwise:gated_activation",
        "gather_blocks": "kernels.cpu.kv_store:gather_blocks",
        "gather_step": "kernels.cpu.step_inputs:gather_step",
        "linear": "kernels.cpu.linear:packed_linear",
        "pack_linear": "kernels.cpu.linear:pack_linear",
        "paged_attention": "kernels.cpu.attention:paged",
        "prepare_attention": "kernels.cpu.attention:prepare_step",
        "rotary_store_kv": "kernels.cpu.kv_store:rotary_store_kv",
        "sample": "kernels.cpu.sampling:sample",
        "scatter_blocks": "kernels.cpu.kv_store:scatter_blocks",
        "token_logprobs": "kernels.cpu.sampling:token_logprobs",
        "varlen_attention": "kernels.cpu.attention:varlen_step",
        "write_rows": "kernels.cpu.step_inputs:write_rows",
        "xielu": "kernels.cpu.elementwise:xielu",
    },
    attention_regions=cpu_attention_regions,
)

_OF_TORCH = (
    *("copy_blocks", "count_tokens", "gather_blocks", "scatter_blocks", "token_logprobs"),
    *("varlen_attention", "write_rows"),
)

NATIVE_CPU = KernelBackend(
    name="native",
    device_type="cpu",
    operations={
        **{name: TORCH_CPU.operations[name] for name in _OF_TORCH},
        "activation": "kernels.cpu.native.elementwise:activation",
        "add_layer_norm": "kernels.cpu.native.elementwise:add_layer_norm",
        "add_rms_norm": "kernels.cpu.native.elementwise:add_rms_norm",
        "commit_tokens": "kernels.cpu.native.step_inputs:commit_tokens",
        "embedding": "kernels.cpu.native.elementwise:embedding",
        "gated_activation": "kernels.cpu.native.elementwise:gated_activation",
        "gather_step": "kernels.cpu.native.step_inputs:gather_step",
        "linear": "kernels.cpu.native.linear:linear",
        "pack_linear": "kernels.cpu.native.linear:pack_linear",
        "paged_attention": "kernels.cpu.native.attention:paged",
        "prepare_attention": "kernels.cpu.native.attention:prepare_step",
        "rotary_store_kv": "kernels.cpu.native.attention:rotary_store_kv",
        "sample": "kernels.cpu.native.sampling:sample",
        "xielu": "kernels.cpu.native.elementwise:xielu",
    },
    attention_regions=native_attention_regions,
)

TRITON_CUDA = KernelBackend(
    name="cuda",
    device_type="cuda",
    operations={
        "activation": "kernels.gpu.elementwise:activation",
        "add_layer_norm": "kernels.gpu.norm:add_layer_norm",
        "add_rms_norm": "kernels.gpu.norm:add_rms_norm",
        "commit_tokens": "kernels.gpu.step_inputs:commit_tokens",
        "copy_blocks": "kernels.gpu.block_copy:copy_blocks",
        "count_tokens": "kernels.gpu.step_inputs:count_tokens",
        "embedding": "kernels.gpu.elementwise:embedding",
        "gated_activation": "kernels.gpu.elementwise:gated_activation",
        "gather_blocks": "kernels.gpu.block_copy:gather_blocks",
        "gather_step": "kernels.gpu.step_inputs:gather_step",
        "linear": "kernels.gpu.linear:linear",
        "pack_linear": "kernels.linears:pack_on_any_device",
        "paged_attention": "kernels.gpu.attention:paged",
        "prepare_attention": "kernels.gpu.attention:prepare_step",
        "rotary_store_kv": "kernels.gpu.kv_store:rotary_store_kv",
        "sample": "kernels.gpu.sampling:sample",
        "scatter_blocks": "kernels.gpu.block_copy:scatter_blocks",
        "token_logprobs": "kernels.gpu.sampling:token_logprobs",
        "varlen_attention": "kernels.gpu.varlen_attention:varlen_step",
        "write_rows": "kernels.gpu.step_inputs:write_rows",
        "xielu": "kernels.gpu.elementwise:xielu",
    },
    attention_regions=gpu_attention_regions,
)

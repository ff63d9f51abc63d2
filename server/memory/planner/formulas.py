"""How each kind of a plan comes about, with the numbers put in. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from server.memory.backends.registry import backend_named
from server.memory.kinds import MemoryKind
from server.memory.layout import decode_graph_sizes
from server.memory.phases import Phase
from server.memory.planner.plan import MemoryPlan
from server.memory.runner_config import RunnerConfig, attention_shape
from weights.formats import FORMATS, get_format
from weights.inventory import QUANTISABLE, tally
from weights.spec import ModelSpec
from weights.tensor_parallel import rank_shape, rank_spec


def formulas(plan: MemoryPlan) -> dict[str, str]:
    """How each kind comes about; those that are planned with the numbers put in."""
    model, config = plan.layout.model, plan.runner
    tied = ", tied unembedding counted once" if model.tied_unembedding else ""
    return {
        "weights": f"{_weights_formula(model, config)}{tied}",
        "kv_cache": _kv_formula(plan),
        "activations": f"largest phase of the largest step, {_phase(plan.layout.peak_phase)} B, "
        f"at {config.max_num_batched_tokens} tokens",
        "io": " + ".join(
            f"{buffer.name} {list(buffer.shape)} {buffer.format}"
            for buffer in plan.layout.buffers
            if buffer.kind is MemoryKind.IO
        ),
        "graphs": _graphs_formula(plan),
        "workspace": _workspace_formula(model, config),
        **backend_named(config.backend).accounting.formulas(None),
    }


def _phase(phase: Phase) -> str:
    return f"{phase.name}: {_sum(phase.tensors)}"


def _sum(parts: Iterable[tuple[str, int]]) -> str:
    return " + ".join(f"{name} {nbytes}" for name, nbytes in parts)


def _graphs_formula(plan: MemoryPlan) -> str:
    phase = plan.layout.graph_phase
    if phase is None:
        return "none: this device captures no graphs"
    rows = decode_graph_sizes(plan.runner)[-1]
    return (
        f"captured decode steps share one pool; largest phase of the largest, {_phase(phase)} B, "
        f"at {rows} rows"
    )


def _workspace_formula(model: ModelSpec, config: RunnerConfig) -> str:
    shape = attention_shape(rank_spec(model, config.ranks), config)
    regions = backend_named(config.backend).kernels.attention_regions(shape)
    if not regions:
        return "none: in batch-invariant mode no row is cut"
    return f"attention's scratch: {_sum(regions.items())} B"


def _kv_formula(plan: MemoryPlan) -> str:
    """A block is a page, which holds the layers of one group: all layers, but with windows."""
    config, layers = plan.runner, len(plan.kv.groups[0].layer_ids)
    heads = rank_spec(plan.layout.model, config.ranks).attention
    channels = f"{heads.num_kv_heads} heads x {heads.head_dim}"
    if config.kv_format in FORMATS:
        numbers = f"{channels} x {get_format(config.kv_format).bytes_per_element} B"
    else:
        numbers = f"{heads.num_kv_heads} heads x ({heads.head_dim} x 1 B + a scale of 4 B)"
    return (
        f"{plan.kv.num_blocks} blocks x {config.block_size} tokens x {layers} layers "
        f"x 2 (K, V) x {numbers}"
    )


def _weights_formula(model: ModelSpec, config: RunnerConfig) -> str:
    """Elements in a quantised format and the others, of one rank."""
    width = get_format(config.format).bytes_per_element
    quantised = others = quantised_bytes = 0
    for parameter, times in tally(model).items():
        held = replace(parameter, shape=rank_shape(parameter, config.ranks))
        if config.quantization is not None and parameter.component in QUANTISABLE:
            quantised += times * held.num_elements
            quantised_bytes += times * held.num_bytes(config.format, config.quantization)
        else:
            others += times * held.num_elements
    rank = f" (one rank of {config.ranks})" if config.ranks > 1 else ""
    if config.quantization is None:
        return f"{others} parameters x {width} B ({config.format}){rank}"
    return (
        f"{quantised} parameters of layers' matrices in {config.quantization} with their scales "
        f"({quantised_bytes} B) + {others} others x {width} B ({config.format}){rank}"
    )

"""How each kind of a plan comes about, with the numbers put in. No torch."""

from __future__ import annotations

from dataclasses import replace

from server.memory.formulas import measured_formulas
from server.memory.layout import MemoryKind, RunnerConfig
from server.memory.memory_plan import MemoryPlan
from weights.formats import FORMATS, get_format
from weights.inventory import QUANTISABLE, tally
from weights.ranks import rank_shape, rank_spec
from weights.spec import ModelSpec


def formulas(plan: MemoryPlan) -> dict[str, str]:
    """How each kind comes about; those that are planned with the numbers put in."""
    model, config = plan.layout.model, plan.runner
    phase = plan.layout.peak_phase
    tied = ", tied unembedding counted once" if model.tied_unembedding else ""
    return {
        "weights": f"{_weights_formula(model, config)}{tied}",
        "kv_cache": _kv_formula(plan),
        "activations": f"largest phase of the largest step, {phase.name}: "
        + " + ".join(f"{name} {nbytes}" for name, nbytes in phase.tensors)
        + f" B, at {config.max_num_batched_tokens} tokens",
        "io": " + ".join(
            f"{buffer.name} {list(buffer.shape)} {buffer.format}"
            for buffer in plan.layout.buffers
            if buffer.kind is MemoryKind.IO
        ),
        "graphs": (
            f"captured decode steps share one pool: {plan.layout.graph_bytes} B"
            if config.on_gpu
            else "none: this device captures no graphs"
        ),
        "workspace": " + ".join(
            f"{buffer.name} {buffer.nbytes} B"
            for buffer in plan.layout.buffers
            if buffer.kind is MemoryKind.WORKSPACE
        ),
        **measured_formulas(config.on_gpu, {}),
    }


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

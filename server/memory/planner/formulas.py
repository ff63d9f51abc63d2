"""How each kind of a plan comes about, with the numbers put in. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from server.engine.engine_config import EngineConfig
from server.memory.backends.registry import backend_named
from server.memory.kinds import MemoryKind
from server.memory.kv_groups import attention_shapes, narrowest_rows, pages
from server.memory.layout import Layout, decode_graph_sizes
from server.memory.phases import Phase
from server.memory.planner.plan import MemoryPlan
from weights.formats import FORMATS, get_format
from weights.inventory import tally
from weights.spec import ModelSpec
from weights.tensor_parallel import rank_shape, rank_spec


def formulas(plan: MemoryPlan) -> dict[str, str]:
    """How each kind comes about; those that are planned with the numbers put in."""
    model, config = plan.layout.model, plan.config
    tied = ", tied unembedding counted once" if model.tied_unembedding else ""
    return {
        "weights": f"{_weights_formula(plan.layout)}{tied}",
        "kv_cache": _kv_formula(plan),
        "activations": f"largest phase of the largest step, {_phase(plan.layout.peak_phase)} B, "
        f"at {config.scheduler.max_num_batched_tokens} tokens",
        "io": " + ".join(
            f"{buffer.name} {list(buffer.shape)} {buffer.format}"
            for buffer in plan.layout.buffers
            if buffer.kind is MemoryKind.IO
        ),
        "graphs": _graphs_formula(plan),
        "workspace": _workspace_formula(model, config),
        **backend_named(config.model.backend).parts.accounting.formulas(None),
    }


def _phase(phase: Phase) -> str:
    return f"{phase.name}: {_sum(phase.tensors)}"


def _sum(parts: Iterable[tuple[str, int]]) -> str:
    return " + ".join(f"{name} {nbytes}" for name, nbytes in parts)


def _graphs_formula(plan: MemoryPlan) -> str:
    phase = plan.layout.graph_phase
    if phase is None:
        return "none: this device captures no graphs"
    rows = decode_graph_sizes(plan.config)[-1]
    return (
        f"captured decode steps share one pool; largest phase of the largest, {_phase(phase)} B, "
        f"at {rows} rows"
    )


def _workspace_formula(model: ModelSpec, config: EngineConfig) -> str:
    regions_of = backend_named(config.model.backend).parts.kernels.attention_regions
    shapes = attention_shapes(rank_spec(model, config.model.ranks), config)
    regions = max(map(regions_of, shapes), key=lambda regions: sum(regions.values()))
    if not regions:
        return "none: in batch-invariant mode no row is cut"
    return f"attention's scratch: {_sum(regions.items())} B"


def _kv_formula(plan: MemoryPlan) -> str:
    """A block is a page, which holds the layers of one group: all layers, but with windows."""
    config, layers = plan.config, len(plan.kv.groups[0].layer_ids)
    model = rank_spec(plan.layout.model, config.model.ranks)
    if len({model.kv_elements(layer) for layer in range(model.num_layers)}) > 1:
        return _unlike_kv_formula(plan, model)
    heads = model.attention
    rows, channels = heads.cached_rows
    kept = "1 latent row" if heads.latent else f"2 (K, V) x {rows // 2} heads"
    if config.cache.format in FORMATS:
        numbers = f"{channels} x {get_format(config.cache.format).bytes_per_element} B"
    else:
        numbers = f"({channels} x 1 B + a scale of 4 B)"
    return (
        f"{plan.kv.num_blocks} blocks x {config.cache.block_size} tokens x {layers} layers "
        f"x {kept} x {numbers}"
    )


def _unlike_kv_formula(plan: MemoryPlan, model: ModelSpec) -> str:
    """A place holds a whole number of layers of either kind of heads."""
    places, elements = pages(model)
    kinds = " or ".join(
        dict.fromkeys(
            f"{elements // model.kv_elements(kind)} x 2 (K, V) x {heads.num_kv_heads} heads "
            f"x {heads.head_dim}"
            for kind, heads in ((k, model.layer_attention(k)) for k in model.kinds_of_layers)
        )
    )
    format, width = plan.config.cache.format, narrowest_rows(model)
    if format in FORMATS:
        held = f"{elements} numbers x {get_format(format).bytes_per_element} B"
    else:
        held = f"{elements // width} rows x ({width} x 1 B + a scale of 4 B)"
    return (
        f"{plan.kv.num_blocks} blocks x {plan.config.cache.block_size} tokens x {places} places "
        f"x {held}; a place has layers alike: {kinds}"
    )


def _weights_formula(layout: Layout) -> str:
    """Elements in a quantised format and the others, of one rank."""
    how = layout.config.model
    width = get_format(how.format).bytes_per_element
    held_format = backend_named(how.backend).parts.held_format
    quantised = others = 0
    for parameter, times in tally(layout.model).items():
        held = replace(parameter, shape=rank_shape(parameter, how.ranks))
        if held_format(layout.model, parameter.component, how) != how.format:
            quantised += times * held.num_elements
        else:
            others += times * held.num_elements
    rank = f" (one rank of {how.ranks})" if how.ranks > 1 else ""
    more_bytes = layout.bytes(MemoryKind.WEIGHTS) - others * width
    if how.quantization is None:
        padding = f" + {more_bytes} B that pad matrices" if more_bytes else ""
        return f"{others} parameters x {width} B ({how.format}){padding}{rank}"
    return (
        f"{quantised} parameters of matrices in {how.quantization} with their scales "
        f"({more_bytes} B) + {others} others x {width} B ({how.format}){rank}"
    )

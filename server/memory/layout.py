"""The one list of what a runner allocates: names, shapes, formats and memory kinds.

What every backend has is listed here, and what it alone has by its record
(server.memory.backends.record).

The runner makes its persistent buffers from this list by name and the planner adds the same list
up, so neither can know of bytes that the other does not. Intermediates are listed by phase of a
step: only one phase is alive at a time, so the plan is the largest phase and not their sum.

Nothing here imports torch: the same arithmetic serves a plan made before any weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.backends import attention_workspace_bytes
from server.engine.engine_config import EngineConfig
from server.memory.backends.record import Backend
from server.memory.backends.registry import backend_named
from server.memory.graph_sizes import graph_sizes
from server.memory.kinds import ELEMENT_BYTES, Buffer, MemoryKind, Shapes, io_buffers
from server.memory.kv_groups import attention_shapes, narrowest_rows, pages
from server.memory.phases import Phase, expert_phases, without_experts
from server.memory.runner_buffers import (
    NUM_SLOTS,
    captured_shapes,
    own_memory_shapes,
    row_shapes,
    slot_shapes,
)
from weights.formats import QUANTISED
from weights.spec import ModelSpec, PositionKind, RopeScaling, RopeSpec
from weights.tensor_parallel import rank_spec

_STRETCHING = (RopeScaling.LINEAR, RopeScaling.DYNAMIC, RopeScaling.YARN)


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything a runner of ``model`` under ``config`` will hold.

    ``buffers`` are persistent; ``phases`` are the largest step's intermediates, one phase alive at
    a time; ``weights`` maps a component of the inventory to its bytes (tied tables once). For a
    device with memory of its own ``pinned`` is one set of the host's buffers that it copies from
    and to; where decode steps are captured ``graph_phase`` is what these keep: the largest one's
    peak, in a pool for all.
    """

    model: ModelSpec
    config: EngineConfig
    buffers: tuple[Buffer, ...]
    phases: tuple[Phase, ...]
    weights: dict[str, int]
    pinned: tuple[Buffer, ...] = ()
    graph_phase: Phase | None = None

    def buffer(self, name: str) -> Buffer:
        """The persistent buffer of that name. Raises KeyError for a name that is not listed."""
        for buffer in self.buffers:
            if buffer.name == name:
                return buffer
        raise KeyError(f"the layout lists no buffer named {name!r}")

    @property
    def pinned_bytes(self) -> int:
        """Pinned host memory of all sets: none of the device's."""
        return NUM_SLOTS * sum(buffer.nbytes for buffer in self.pinned)

    @property
    def peak_phase(self) -> Phase:
        """The phase of a step in which most bytes of intermediates are alive."""
        return _peak(self.phases)

    def bytes(self, kind: MemoryKind) -> int:
        """Planned bytes of one kind; 0 for the kinds that no list can know before start."""
        if kind is MemoryKind.WEIGHTS:
            return sum(self.weights.values())
        if kind is MemoryKind.ACTIVATIONS:
            return self.peak_phase.nbytes
        if kind is MemoryKind.GRAPHS:
            return 0 if self.graph_phase is None else self.graph_phase.nbytes
        return sum(buffer.nbytes for buffer in self.buffers if buffer.kind is kind)


def _peak(phases: tuple[Phase, ...]) -> Phase:
    return max(phases, key=lambda phase: phase.nbytes)


def max_context(model: ModelSpec) -> int:
    """The longest context that the model has positions for, in tokens.

    Linear and dynamic scaling stretch max_positions by their factor; yarn and llama3 checkpoints
    mostly state the stretched length themselves, but some yarn ones state the original.
    """
    rope = model.rope
    if model.position is PositionKind.ROTARY and rope.scaling in _STRETCHING:
        return max(model.max_positions, int(rope.original_max_positions * rope.factor))
    return model.max_positions


def build_layout(model: ModelSpec, config: EngineConfig) -> Layout:
    """Lists every buffer, the largest step's intermediates and the weights of a runner: of one of
    them, where several ranks share each layer."""
    part, backend = rank_spec(model, config.model.ranks), backend_named(config.model.backend)
    sizes, graph_phase = config.scheduler, None
    if backend.captures_graphs:
        decode_rows = decode_graph_sizes(config)[-1]
        graph_phase = _peak(_phases(backend, part, config, decode_rows, decode_rows))
    return Layout(
        model=model,
        config=config,
        buffers=(
            *_kv_cache(part, config),
            *io_buffers(_runner_shapes(backend, part, config)),
            *_positions(part, config),
            _attention_workspace(backend, part, config),
        ),
        phases=_phases(
            backend,
            part,
            config,
            sizes.max_num_batched_tokens,
            sizes.logit_rows,
        ),
        weights=backend.parts.weights(model, config.model),
        pinned=io_buffers(_slot(backend, part, config)) if backend.own_memory else (),
        graph_phase=graph_phase,
    )


def _slot(backend: Backend, part: ModelSpec, config: EngineConfig) -> Shapes:
    return slot_shapes(part, config, backend.max_decode_steps)


def _runner_shapes(backend: Backend, part: ModelSpec, config: EngineConfig) -> Shapes:
    return (
        *row_shapes(part, config),
        *(own_memory_shapes(part, config) if backend.own_memory else _slot(backend, part, config)),
        *(captured_shapes(part, config) if backend.captures_graphs else ()),
        *backend.parts.buffers(part, config),
    )


def _phases(
    backend: Backend, part: ModelSpec, config: EngineConfig, tokens: int, logit_rows: int
) -> tuple[Phase, ...]:
    element_bytes = ELEMENT_BYTES[config.model.format]
    return (
        *backend.parts.phases(without_experts(part), config, tokens, logit_rows),
        *expert_phases(part, tokens=tokens, element_bytes=element_bytes),
    )


def decode_graph_sizes(config: EngineConfig) -> tuple[int, ...]:
    """The batch sizes that a runner captures decode steps for, where it captures any; rising."""
    sizes = config.scheduler
    return graph_sizes(min(sizes.max_num_seqs, sizes.logit_rows, sizes.max_num_batched_tokens))


def _kv_cache(model: ModelSpec, config: EngineConfig) -> tuple[Buffer, ...]:
    """The pool: each page holds a block of one group's layers. Scales, where a format has them."""
    cache = config.cache
    places, elements = pages(model)
    channels = narrowest_rows(model)
    # [keys or values, heads] of a token; of a latent row there is one for both.
    rows_of = (1, 1) if model.attention.latent else (2, elements // channels // 2)
    slots = (places, cache.num_blocks, *rows_of, cache.block_size)
    pool = Buffer("kv_cache", (*slots, channels), cache.format, MemoryKind.KV_CACHE)
    if cache.format in QUANTISED:
        return (pool, Buffer("kv_scales", slots, "f32", MemoryKind.KV_CACHE))
    return (pool,)


def _positions(model: ModelSpec, config: EngineConfig) -> tuple[Buffer, ...]:
    """Tables of cosines and sines, or ALiBi's slopes. A learned table of positions is a weight
    instead."""
    if model.position is PositionKind.ALIBI:
        heads = (model.attention.num_query_heads,)
        return (Buffer("alibi_slopes", heads, "f32", MemoryKind.IO),)
    length = config.scheduler.max_model_len
    return tuple(
        Buffer(name, (length, rope.dim), "f32", MemoryKind.IO)
        for name, rope in rotary_ropes(model).items()
    )


def rotary_ropes(model: ModelSpec) -> dict[str, RopeSpec]:
    """The ropes that layers turn by, each by the name of its table's buffer."""
    ropes = {model.layer_rope(layer): None for layer in range(model.num_layers)}
    names = {model.rope: "rotary_table", model.local_rope: "local_table"}
    return {names[rope]: rope for rope in ropes if rope is not None}


def _attention_workspace(backend: Backend, model: ModelSpec, config: EngineConfig) -> Buffer:
    kernels = backend.parts.kernels
    nbytes = max(
        attention_workspace_bytes(shape, kernels) for shape in attention_shapes(model, config)
    )
    return Buffer("attention_workspace", (nbytes,), "u8", MemoryKind.WORKSPACE)

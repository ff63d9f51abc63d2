"""The one list of what the runner allocates: names, shapes, formats and memory kinds.

The runner makes its persistent buffers from this list by name and the planner adds the same list
up, so neither can know of bytes that the other does not. Intermediates are listed by phase of a
step: only one phase is alive at a time, so the plan is the largest phase and not their sum.

Nothing here imports torch: the same arithmetic serves a plan made before any weight is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from kernels.backends import TORCH_CPU, TRITON_CUDA, KernelBackend, attention_workspace_bytes
from kernels.workspace import AttentionShape
from server.engine.kv_spec import KVCacheSpec
from server.memory.expert_intermediates import expert_phases, without_experts
from server.memory.gpu_intermediates import gpu_phases
from server.memory.gpu_layout import NUM_SLOTS, Shapes, device_shapes, pinned_shapes
from server.memory.graph_sizes import graph_sizes
from server.memory.intermediates import Phase, phases
from server.memory.kv_groups import kv_cache_spec as kv_cache_spec
from server.memory.kv_groups import windows_of
from server.memory.runner_config import RunnerConfig as RunnerConfig
from weights.formats import FORMATS, QUANTISED
from weights.inventory import tally
from weights.ranks import rank_shape, rank_spec
from weights.spec import ModelSpec, PositionKind, RopeScaling

ELEMENT_BYTES = {
    **{name: fmt.bytes_per_element for name, fmt in FORMATS.items()},
    **{"i64": 8, "i32": 4, "bool": 1, "u8": 1, "int8": 1, "fp8": 1},
}

_STRETCHING = (RopeScaling.LINEAR, RopeScaling.DYNAMIC, RopeScaling.YARN)


class MemoryKind(StrEnum):
    """What memory is for. On every device the bytes of all kinds add up to its total."""

    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"
    ACTIVATIONS = "activations"
    IO = "io"
    GRAPHS = "graphs"
    WORKSPACE = "workspace"
    ALLOCATOR_SLACK = "allocator_slack"
    RUNTIME = "runtime"
    OTHER_PROCESSES = "other_processes"
    UNACCOUNTED = "unaccounted"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor that lives as long as the runner. ``format`` is a key of ELEMENT_BYTES."""

    name: str
    shape: tuple[int, ...]
    format: str
    kind: MemoryKind

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ELEMENT_BYTES[self.format]


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything a runner of ``model`` under ``config`` will hold.

    ``buffers`` are persistent; ``phases`` are the largest step's intermediates, one phase alive at
    a time; ``weights`` maps a component of the inventory to its bytes (tied tables once). On a GPU
    ``pinned`` is one set of the host's buffers that the device copies from and to, and
    ``graph_phase`` what captured decode steps keep: the largest one's peak, in a pool for all.
    """

    model: ModelSpec
    config: RunnerConfig
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


def attention_shape(model: ModelSpec, config: RunnerConfig) -> AttentionShape:
    """The largest step as attention sees it."""
    return AttentionShape(
        num_query_heads=model.attention.num_query_heads,
        num_kv_heads=model.attention.num_kv_heads,
        head_dim=model.attention.head_dim,
        block_size=config.block_size,
        element_bytes=ELEMENT_BYTES[config.format],
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        batch_invariant=config.batch_invariant,
        windows=windows_of(model),
    )


def kernel_backend(config: RunnerConfig) -> KernelBackend:
    """Whose operations the runner is made of."""
    return TRITON_CUDA if config.on_gpu else TORCH_CPU


def build_layout(model: ModelSpec, config: RunnerConfig) -> Layout:
    """Lists every buffer, the largest step's intermediates and the weights of a runner: of one of
    them, where several ranks share each layer."""
    part = rank_spec(model, config.ranks)
    if config.on_gpu:
        return _gpu_layout(model, part, config)
    return Layout(
        model=model,
        config=config,
        buffers=(
            *_kv_cache(part, config),
            *_row_state(part, config),
            *_step_inputs(config),
            *_positions(part, config),
            _attention_workspace(part, config),
        ),
        phases=(
            *phases(
                without_experts(part),
                attention_shape(part, config),
                logit_rows=config.logit_rows,
                num_top=config.max_logprobs,
            ),
            *_expert_phases(part, config, config.max_num_batched_tokens),
        ),
        weights=_weights(model, config),
    )


def _gpu_layout(model: ModelSpec, part: ModelSpec, config: RunnerConfig) -> Layout:
    decode_rows = decode_graph_sizes(config)[-1]
    return Layout(
        model=model,
        config=config,
        buffers=(
            *_kv_cache(part, config),
            *_io(device_shapes(config, part.vocab_size)),
            *_positions(part, config),
            _attention_workspace(part, config),
        ),
        phases=_gpu_phases(part, config, config.max_num_batched_tokens, config.logit_rows),
        weights=_weights(model, config),
        pinned=_io(pinned_shapes(config)),
        graph_phase=_peak(_gpu_phases(part, config, decode_rows, decode_rows)),
    )


def _expert_phases(part: ModelSpec, config: RunnerConfig, tokens: int) -> tuple[Phase, ...]:
    return expert_phases(part, tokens=tokens, element_bytes=ELEMENT_BYTES[config.format])


def decode_graph_sizes(config: RunnerConfig) -> tuple[int, ...]:
    """The batch sizes that a runner on a GPU captures decode steps for, rising."""
    rows = min(config.max_num_seqs, config.logit_rows, config.max_num_batched_tokens)
    return graph_sizes(rows)


def _gpu_phases(
    part: ModelSpec, config: RunnerConfig, tokens: int, logit_rows: int
) -> tuple[Phase, ...]:
    plain = gpu_phases(
        without_experts(part),
        tokens=tokens,
        rows=config.max_num_seqs,
        element_bytes=ELEMENT_BYTES[config.format],
        logit_rows=logit_rows,
        num_top=config.max_logprobs,
        quantization=config.quantization,
        batch_invariant=config.batch_invariant,
    )
    return (*plain, *_expert_phases(part, config, tokens))


def _io(shapes: Shapes) -> tuple[Buffer, ...]:
    return tuple(Buffer(name, shape, fmt, MemoryKind.IO) for name, shape, fmt in shapes)


def _weights(model: ModelSpec, config: RunnerConfig) -> dict[str, int]:
    by_component: dict[str, int] = {}
    for parameter, times in tally(model).items():
        held = replace(parameter, shape=rank_shape(parameter, config.ranks))
        nbytes = times * held.num_bytes(config.format, config.quantization)
        component = str(parameter.component)
        by_component[component] = by_component.get(component, 0) + nbytes
    return by_component


def _kv_cache(model: ModelSpec, config: RunnerConfig) -> tuple[Buffer, ...]:
    """The pool: each page holds a block of one group's layers. Scales, where a format has them."""
    kv = kv_cache_spec(model, config.kv_format, config.block_size, config.num_blocks)
    heads, head_dim = model.attention.num_kv_heads, model.attention.head_dim
    slots = (len(kv.groups[0].layer_ids), config.num_blocks, 2, heads, config.block_size)
    pool = Buffer("kv_cache", (*slots, head_dim), config.kv_format, MemoryKind.KV_CACHE)
    buffers = (pool, *_more_block_tables(kv, config))
    if config.kv_format in QUANTISED:
        return (*buffers, Buffer("kv_scales", slots, "f32", MemoryKind.KV_CACHE))
    return buffers


def _more_block_tables(kv: KVCacheSpec, config: RunnerConfig) -> tuple[Buffer, ...]:
    """Those of the groups after the first, whose tables are listed with the rows: held and sent."""
    blocks = sum(group.blocks_of(config.max_model_len) for group in kv.groups[1:])
    if not blocks:
        return ()
    shape = (2, config.max_num_seqs, blocks)
    return (Buffer("more_block_tables", shape, "i32", MemoryKind.IO),)


def _row_state(model: ModelSpec, config: RunnerConfig) -> tuple[Buffer, ...]:
    """What a row keeps between steps."""
    rows, vocab = config.max_num_seqs, model.vocab_size
    shapes: tuple[tuple[str, tuple[int, ...], str], ...] = (
        ("token_ids", (rows, config.max_model_len), "i32"),
        ("block_tables", (rows, config.max_blocks_per_row), "i32"),
        ("output_counts", (rows, vocab), "i32"),
        ("prompt_mask", (rows, vocab), "bool"),
        ("row_lengths", (4, rows), "i64"),  # tokens, computed, prompt, blocks
        ("row_sampling", (6, rows), "f32"),
        ("row_top_k", (rows,), "i64"),
        ("row_keys", (rows,), "i64"),
    )
    return tuple(Buffer(name, shape, fmt, MemoryKind.IO) for name, shape, fmt in shapes)


def _step_inputs(config: RunnerConfig) -> tuple[Buffer, ...]:
    """What a step is told: rebuilt from the plan each time, in place."""
    tokens, rows = config.max_num_batched_tokens, config.max_num_seqs
    shapes: tuple[tuple[str, tuple[int, ...], str], ...] = (
        ("step_token_ids", (tokens,), "i64"),
        ("positions", (tokens,), "i64"),
        ("slot_mapping", (tokens,), "i64"),
        ("query_start_loc", (rows + 1,), "i32"),
        ("seq_lens", (rows,), "i32"),
        ("step_block_tables", (rows, config.max_blocks_per_row), "i32"),
    )
    return tuple(Buffer(name, shape, fmt, MemoryKind.IO) for name, shape, fmt in shapes)


def _positions(model: ModelSpec, config: RunnerConfig) -> tuple[Buffer, ...]:
    """Tables of cosines and sines. A learned table of positions is a weight instead."""
    if model.position is not PositionKind.ROTARY:
        return ()
    shape = (config.max_model_len, model.rope.dim)
    names = ("rotary_table",) if model.local_rope is None else ("rotary_table", "local_table")
    return tuple(Buffer(name, shape, "f32", MemoryKind.IO) for name in names)


def _attention_workspace(model: ModelSpec, config: RunnerConfig) -> Buffer:
    nbytes = attention_workspace_bytes(attention_shape(model, config), kernel_backend(config))
    return Buffer("attention_workspace", (nbytes,), "u8", MemoryKind.WORKSPACE)

"""Makes a plan: the same request and the same arithmetic as a server's start, for any device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from server.config.server_config import ServerConfig, resolve
from server.engine.engine_config import EngineConfig
from server.errors import StartupError
from server.memory.engine_args import EngineArgs
from server.memory.planner.plan import DoesNotFit, MemoryPlan
from server.memory.planner.planner import (
    blocks_at_once,
    changes_that_fit,
    kv_of,
    plan_memory,
    size_memory,
)
from server.memory.planner.resolve_args import format_of
from server.memory.planner.suggestions import Change, Larger, more_memory
from server.plan_cli.model import PlannedModel, find_model, not_served
from server.plan_cli.options import KV_DTYPES
from server.plan_cli.target import Target, device_that_leaves, find_target, larger_devices
from server.startup.model_info import decided_args
from weights.spec import ModelSpec
from weights.tensor_parallel import check_ranks

RANKS = (1, 2, 4, 8)  # of the what-if grid
NARROW_KV = "fp8"
_UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What was asked on the command line. ``flags`` are options that ``quire serve`` has too, as it
    has them; ``kv_cache_dtype`` may be one that no server keeps yet, None where it was left out."""

    model: str | None
    shape: str | None
    device: str | None
    kv_cache_dtype: str | None
    ranks: int
    flags: Mapping[str, str]
    config_file: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """``args`` is what was asked; ``memory`` the plan where it fits, else what it would take for
    the least that was asked, and ``refusal`` and ``changes`` say why it does not and what would.
    ``start`` is what ``quire serve`` would start with where only the cache cannot hold the whole
    load at once.
    """

    model: PlannedModel
    target: Target
    args: EngineArgs
    memory: MemoryPlan
    refusal: DoesNotFit | None
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    start: MemoryPlan | None = None

    @property
    def fits(self) -> bool:
        return self.refusal is None

    @property
    def config(self) -> EngineConfig:
        """The sizes that were planned for."""
        return self.memory.config


def make_plan(options: PlanOptions, environment: Mapping[str, str] | None = None) -> Plan:
    """Plans as ``quire serve`` would start. ``environment`` as server.config.server_config.resolve
    takes it.

    It fits where the load that was asked for fits at once: so many sequences of such a length where
    both were given, else one sequence of the length that was given, or that the plan chooses.

    Raises StartupError for what cannot be planned: an option, a file, a name.
    """
    config = resolve(options.flags, environment, options.config_file)
    model = find_model(options.model, options.shape, config.model_dir)
    device = config.engine.device if options.device is None else options.device
    target = find_target(device, config, model.spec)
    try:
        check_ranks(model.spec, options.ranks)
    except ValueError as error:
        raise StartupError(f"--tensor-parallel-size {options.ranks}: {error}") from None
    args, reason = decided_args(config.engine, target.placement, model.spec, model.stored)
    args = replace(args, ranks=options.ranks, whole_load=True)
    if options.kv_cache_dtype is not None:
        args = replace(args, kv_cache_dtype=KV_DTYPES[options.kv_cache_dtype])
    notes = (*model.notes, *_notes(model.spec, args, target, reason))
    available = target.placement.available
    try:
        # The way that a server takes, so that both refuse alike.
        memory = size_memory(model.spec, args, available)
    except DoesNotFit as refusal:
        more = _other_hardware(args, target, config)
        changes = changes_that_fit(
            model.spec, args, available, refusal, more, larger=_larger_memory(target)
        )
        memory = _as_asked(model.spec, args, refusal)
        start = _start(model.spec, args, available)
        return Plan(model, target, args, memory, refusal, changes, notes, start)
    return Plan(model, target, args, memory, None, (), notes)


def _notes(spec: ModelSpec, args: EngineArgs, target: Target, reason: str) -> Iterator[str]:
    yield from not_served(spec, target.placement.backend)
    if reason:
        yield reason
    if args.ranks > 1:
        yield (
            f"what-if: {args.ranks} devices share each layer, the figures are one's; the server "
            "computes on one device yet"
        )
    kv_format, backend = args.kv_cache_dtype, target.placement.backend
    if kv_format not in (None, format_of(args.dtype), *backend.kv_formats):
        yield (
            f"what-if: a KV cache in {kv_format}; on {backend.place} the server keeps it in --dtype"
        )


def _start(spec: ModelSpec, args: EngineArgs, available: int) -> MemoryPlan | None:
    """What a server would start with, which needs a cache for one sequence only."""
    if not args.is_whole_load:
        return None
    try:
        return size_memory(spec, replace(args, whole_load=False), available)
    except DoesNotFit:
        return None


def _as_asked(spec: ModelSpec, args: EngineArgs, refusal: DoesNotFit) -> MemoryPlan:
    """What was refused, on a device without limits: with a cache for the least that was asked."""
    one, length = kv_of(spec, refusal.config), refusal.config.scheduler.max_model_len
    least = blocks_at_once(args.least_sequences, one, refusal.config) * one.page_bytes
    nbytes = max(least, args.kv_cache_memory or 0)
    alone = replace(args, max_model_len=length, kv_cache_memory=nbytes, whole_load=False)
    return plan_memory(spec, alone, _UNBOUNDED)


def _other_hardware(
    args: EngineArgs, target: Target, config: ServerConfig
) -> Iterator[list[Change]]:
    """A larger device. Several devices are in the what-if table alone: quire serve has one of
    them yet."""
    yield [
        Change(
            f"--device {other.name}",
            args,
            other.placement.available,
            other.total_bytes / target.total_bytes,
        )
        for other in larger_devices(target, config)
    ]


def _larger_memory(target: Target) -> Larger:
    """A device of another size, where one was named; this machine's memory cannot be chosen."""
    if target.device is None:
        return more_memory
    return lambda available, needed: device_that_leaves(needed) or more_memory(available, needed)


def can_share(spec: ModelSpec, ranks: int) -> bool:
    """Whether so many devices can share each layer."""
    try:
        check_ranks(spec, ranks)
    except ValueError:
        return False
    return True

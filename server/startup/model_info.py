"""Reads what a checkpoint folder says and plans the server's sizes. No weight is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.cgroups import available_cores
from server.config.server_config import ServerConfig
from server.engine.response_budget import answer_limits
from server.errors import StartupError
from server.ipc.engine_info import EngineSettings
from server.memory.accounting.process import machine_memory
from server.memory.engine_args import EngineArgs
from server.memory.planner.plan import MemoryPlan
from server.memory.planner.planner import plan_memory
from server.startup.dtype_choice import choose_dtype
from server.startup.placement import Placement, place
from server.startup.supported_models import unserved_features
from weights.checkpoint.folder import Checkpoint, open_checkpoint, refuse_dangling
from weights.checkpoint.matching import match
from weights.config.family import Family
from weights.errors import CheckpointError
from weights.families import resolve
from weights.generation import end_of_sequence_ids
from weights.inventory import num_parameters
from weights.spec import ModelSpec

# Read for their text by server.text, some of them only where they are there.
_TEXT_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "tekken.json"),
    *("chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A checked folder and the plan for it. ``dtype_reason`` says why --dtype auto came to what it
    did, for people, where that was weighed."""

    folder: Path
    spec: ModelSpec
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    eos_token_ids: tuple[int, ...]
    checkpoint_bytes: int
    checkpoint_format: str
    unread_keys: tuple[str, ...]
    plan: MemoryPlan
    placement: Placement
    dtype_reason: str

    @property
    def num_parameters(self) -> int:
        """Parameters as held: a tied table once."""
        return num_parameters(self.spec)

    @property
    def fingerprint(self) -> str:
        """Changes with what the answers depend on: the model's configuration and its formats."""
        held = [self.plan.config.model.format]
        if self.plan.config.model.quantization is not None:
            held.append(self.plan.config.model.quantization)
        if self.plan.config.cache.format != self.plan.config.model.format:
            held.append(f"KV cache {self.plan.config.cache.format}")
        facts = json.dumps([dict(self.config), *held], sort_keys=True)
        return "quire-" + hashlib.sha256(facts.encode()).hexdigest()[:12]


def read_model(config: ServerConfig) -> ModelInfo:
    """Checks the folder and decides every size.

    Raises:
        StartupError: names the file, the tensor or the option at fault.
    """
    folder = Path(config.model_dir)
    try:
        checkpoint = open_checkpoint(folder)
        family = resolve(checkpoint.config)
        spec = family.spec(checkpoint.config)
        ends = end_of_sequence_ids(spec, checkpoint.generation_config)
        unread = family.unread_keys(checkpoint.config)
    except CheckpointError as error:
        raise StartupError(f"{folder}: {error}") from error
    missing = unserved_features(spec)
    if missing:
        raise StartupError(
            f"{folder}: the model needs features that are not served yet: {', '.join(missing)}; "
            "quire plan shows the memory that it would take"
        )
    placement = place(config, spec)
    _refuse_tensors(checkpoint, family, spec)
    stored = checkpoint.parameter_format or spec.parameter_dtype
    args, reason = decided_args(config.engine, placement, spec, stored)
    return ModelInfo(
        folder=folder,
        spec=spec,
        config=checkpoint.config,
        generation_config=checkpoint.generation_config,
        eos_token_ids=ends,
        checkpoint_bytes=checkpoint.total_bytes,
        checkpoint_format=stored,
        unread_keys=unread,
        plan=plan_memory(spec, args, placement.available),
        placement=placement,
        dtype_reason=reason,
    )


def _refuse_tensors(checkpoint: Checkpoint, family: Family, spec: ModelSpec) -> None:
    """What the loader would refuse: told here, before the engine is told anything.

    Raises:
        StartupError: a tensor is missing, not expected, or of the wrong shape or dtype.
    """
    try:
        refuse_dangling(checkpoint.folder, _TEXT_FILES)
        match(checkpoint, family, spec)
    except CheckpointError as error:
        raise StartupError(f"{checkpoint.folder}: {error}") from error


def decided_args(
    asked: EngineArgs, placement: Placement, spec: ModelSpec, stored: str
) -> tuple[EngineArgs, str]:
    """``asked`` with the device, its threads and the dtype decided, and why that dtype, where it
    was weighed. ``stored`` is the checkpoint's format."""
    here = replace(
        asked,
        device=placement.backend.device,
        backend=placement.backend.name,
        threads=asked.threads or available_cores(),
    )
    return choose_dtype(here, spec, stored, placement.available)


def engine_settings(config: ServerConfig, model: ModelInfo) -> EngineSettings:
    """What the engine process is told."""
    planned = model.plan.config
    scheduler = replace(
        planned.scheduler,
        eos_token_ids=model.eos_token_ids,
        answers=answer_limits(_host_bytes_left(model)),
    )
    return EngineSettings(
        model_dir=str(model.folder.resolve()),
        config=replace(planned, scheduler=scheduler),
        num_threads=planned.model.num_threads,
        log_format=config.log_format,
        debug_check_invariants=config.debug_check_invariants,
        cuda_graphs=config.cuda_graphs,
    )


def _host_bytes_left(model: ModelInfo) -> int:
    """What the plan leaves of the host's memory. Beside a device's own the plan takes next to none
    of it."""
    if model.placement.backend.own_memory:
        return max(0, machine_memory()[1] - model.placement.api_memory)
    return model.plan.available_bytes - sum(model.plan.kinds.values())

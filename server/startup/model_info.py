"""Reads what a checkpoint folder says and plans the server's sizes. No weight is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.config.server_config import ServerConfig, available_cores
from server.engine.request import EngineLimits
from server.engine.response_budget import answer_limits
from server.errors import StartupError
from server.ipc.engine_info import EngineSettings
from server.memory.accounting.process import machine_memory
from server.memory.planner.plan import MemoryPlan
from server.memory.planner.planner import plan_memory, resolve_format
from server.memory.planner.request import PlanRequest
from server.startup.dtype_choice import weigh_dtype
from server.startup.placement import Placement, place, refuse_model
from server.startup.supported_models import unserved_features
from weights.checkpoint.folder import Checkpoint, open_checkpoint, refuse_dangling
from weights.checkpoint.matching import match
from weights.errors import CheckpointError
from weights.families import resolve
from weights.families.base import Family
from weights.generation import end_of_sequence_ids
from weights.inventory import num_parameters
from weights.spec import ModelSpec

# Read for their text by server.text, some of them only where they are there.
_TEXT_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A checked folder and the plan for it."""

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

    @property
    def num_parameters(self) -> int:
        """Parameters as held: a tied table once."""
        return num_parameters(self.spec)

    @property
    def fingerprint(self) -> str:
        """Changes with what the answers depend on: the model's configuration and its formats."""
        runner = self.plan.runner
        held = (
            [runner.format] if runner.quantization is None else [runner.format, runner.quantization]
        )
        facts = json.dumps([dict(self.config), *held], sort_keys=True)
        return "quire-" + hashlib.sha256(facts.encode()).hexdigest()[:12]


def read_model(config: ServerConfig) -> ModelInfo:
    """Checks the folder and decides every size.

    Raises:
        StartupError: names the file, the tensor or the option at fault.
    """
    placement = place(config)
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
    refuse_model(spec, placement.backend)
    _refuse_tensors(checkpoint, family, spec)
    stored = checkpoint.parameter_format or spec.parameter_dtype
    request = plan_request(config, placement, spec, stored)
    return ModelInfo(
        folder=folder,
        spec=spec,
        config=checkpoint.config,
        generation_config=checkpoint.generation_config,
        eos_token_ids=ends,
        checkpoint_bytes=checkpoint.total_bytes,
        checkpoint_format=stored,
        unread_keys=unread,
        plan=plan_memory(spec, request, placement.available),
        placement=placement,
    )


def _refuse_tensors(checkpoint: Checkpoint, family: Family, spec: ModelSpec) -> None:
    """What the loader would refuse: told here, before an engine is started to import torch.

    Raises:
        StartupError: a tensor is missing, not expected, or of the wrong shape or dtype.
    """
    try:
        refuse_dangling(checkpoint.folder, _TEXT_FILES)
        match(checkpoint, family, spec)
    except CheckpointError as error:
        raise StartupError(f"{checkpoint.folder}: {error}") from error


def plan_request(
    config: ServerConfig, placement: Placement, spec: ModelSpec, stored: str
) -> PlanRequest:
    """What is asked of the memory plan; ``stored`` is the checkpoint's format."""
    request = PlanRequest(
        format=resolve_format(config.dtype, stored, spec, placement.backend),
        block_size=placement.block_size,
        max_num_seqs=placement.max_num_seqs,
        max_num_batched_tokens=placement.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        kv_cache_bytes=config.kv_cache_memory,
        quantization=config.quantization,
        backend=placement.backend.name,
        batch_invariant=config.batch_invariant,
    )
    return weigh_dtype(config, spec, request, placement.available)


def engine_settings(config: ServerConfig, model: ModelInfo) -> EngineSettings:
    """What the engine process is told."""
    runner = model.plan.runner
    return EngineSettings(
        model_dir=str(model.folder.resolve()),
        runner=runner,
        limits=EngineLimits(
            max_num_seqs=runner.max_num_seqs,
            max_num_batched_tokens=runner.max_num_batched_tokens,
            max_model_len=runner.max_model_len,
            max_logit_rows=runner.max_logit_rows,
            max_queued_requests=config.max_queued_requests,
            max_queued_tokens=config.max_queued_tokens(runner.max_model_len),
            queue_timeout_s=config.queue_timeout,
            prefix_caching=config.prefix_caching,
            eos_token_ids=model.eos_token_ids,
            max_logprobs=runner.max_logprobs,
            answers=answer_limits(_host_bytes_left(model)),
        ),
        num_threads=config.threads or available_cores(),
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

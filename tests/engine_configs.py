"""An engine's configuration from flat sizes: each goes to the part that has it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from server.engine.engine_config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig

SMALL = EngineConfig(
    ModelConfig("f32", "torch"),
    CacheConfig(block_size=16, num_blocks=64, format="f32"),
    SchedulerConfig(
        max_num_seqs=8,
        max_num_batched_tokens=512,
        max_model_len=512,
        max_logit_rows=512,
        max_queued_requests=1000,
        max_queued_tokens=1_000_000,
        queue_timeout_s=1e9,
        max_logprobs=8,
    ),
)


def engine_config(base: EngineConfig = SMALL, **changes: Any) -> EngineConfig:
    """``base`` with other sizes. The cache is in the format of the model, but for ``kv_format``."""
    names = {part: [f.name for f in fields(part)] for part in (ModelConfig, SchedulerConfig)}
    model = {name: changes.pop(name) for name in names[ModelConfig] if name in changes}
    scheduler = {name: changes.pop(name) for name in names[SchedulerConfig] if name in changes}
    kv_format = changes.pop("kv_format", model.get("format", base.cache.format))
    return EngineConfig(
        replace(base.model, **model),
        replace(base.cache, format=kv_format, **changes),
        replace(base.scheduler, **scheduler),
    )

"""What attention is given of positions: tables of angles, ALiBi's slopes, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.execution.model import fill_position_tables
from server.memory.kinds import MemoryKind
from server.memory.layout import build_layout
from tests.engine_configs import engine_config
from weights import families
from weights.spec import ModelSpec


def spec_of(family: str, **facts: Any) -> ModelSpec:
    served = families.by_name(family)
    return served.spec({**served.sizes, **facts})


def slopes_of(model: ModelSpec) -> torch.Tensor | None:
    layout = build_layout(model, engine_config())
    tables = (one for one in layout.buffers if one.kind is MemoryKind.IO and one.format == "f32")
    buffers = {table.name: torch.full(table.shape, -1.0) for table in tables}
    return fill_position_tables(model, layout.config.scheduler.max_model_len, buffers).alibi_slopes


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (spec_of("bloom"), [2**-2, 2**-4, 2**-6, 2**-8]),
        # As published checkpoints were trained: of 4 heads, then every other one of 8.
        (spec_of("bloom", n_head=6, hidden_size=96), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (spec_of("mpt", attn_config={"alibi_bias_max": 16}), [2**-4, 2**-8, 2**-12, 2**-16]),
        # Falcon's bias is scaled with the scores, here by the square root of 16 channels.
        (spec_of("falcon", alibi=True), [2**-4, 2**-6, 2**-8, 2**-10]),
    ],
    ids=["4 heads", "6 heads", "a larger bias", "scaled"],
)
def test_slopes_are_the_models(model: ModelSpec, expected: list[float]) -> None:
    slopes = slopes_of(model)
    assert slopes is not None and slopes.tolist() == expected


def test_no_other_kind_of_positions_has_slopes() -> None:
    for model in (spec_of("falcon"), spec_of("gpt2"), spec_of("mpt", attn_config={"alibi": False})):
        assert slopes_of(model) is None

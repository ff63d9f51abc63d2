"""What attention's work lists hold on a CPU is within what a plan counts for them."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

import kernels
from server.memory.intermediates import phases
from server.memory.kv_groups import attention_shape, layer_groups
from tests.engine_configs import engine_config
from weights.spec import ModelSpec
from weights.synthetic.tiny_specs import tiny_llama

ROWS = {
    "decode": [(1, 1000 - row) for row in range(16)],
    "short chunks": [(16, 990 - row) for row in range(16)],
    "one chunk": [(256, 1000)],
}


def storages(held: object) -> dict[int, int]:
    """Bytes by address of every tensor in plain data."""
    if isinstance(held, torch.Tensor):
        storage = held.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    parts: list[object] = []
    if dataclasses.is_dataclass(held):
        parts = [getattr(held, field.name) for field in dataclasses.fields(held)]
    elif isinstance(held, tuple):
        parts = list(held)
    found: dict[int, int] = {}
    for part in parts:
        found |= storages(part)
    return found


def held_bytes(model: ModelSpec, shape: kernels.AttentionShape, rows: list[tuple[int, int]]) -> int:
    tokens = sum(count for count, _ in rows)
    slots = torch.zeros(tokens, dtype=torch.int64)
    starts = [0, *accumulate(count for count, _ in rows)]
    common = {
        "query_start_loc": torch.tensor(starts, dtype=torch.int32),
        "seq_lens": torch.tensor([context for _, context in rows], dtype=torch.int32),
    }
    tables = torch.zeros(len(rows), 64, dtype=torch.int32)
    found: dict[int, int] = {}
    kept, first = [], None
    for layers in layer_groups(model):
        metadata = kernels.prepare_attention(
            **common,
            block_tables=tables,
            slot_mapping=slots,
            positions=slots,
            shape=shape,
            like=first,
        )
        first = first or metadata
        kept.append(metadata.work.list_for(model.window(layers[0])))
        found |= storages(kept[-1])
    return sum(found.values())


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("windows", [(), (30,), (200,), (0, 30)], ids=str)
def test_lists_take_no_more_than_is_planned(windows, rows):
    model = tiny_llama()
    windows = tuple(
        windows[layer % len(windows)] for layer in range(model.num_layers if windows else 0)
    )
    model = replace(model, windows=windows)
    config = engine_config(
        block_size=16,
        num_blocks=1024,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        max_model_len=1024,
        max_logit_rows=16,
        max_logprobs=0,
    )
    shape = attention_shape(model, 0, config)
    planned = dict(phases(model, [shape], logit_rows=16, num_top=0)[1].tensors)["work_list"]
    assert 0 < held_bytes(model, shape, rows) <= planned

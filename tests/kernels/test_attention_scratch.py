"""What attention allocates, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import kernels
from kernels import AttentionFeatures, AttentionShape, AttentionWorkspace, alibi_slopes
from kernels.backends import TORCH_CPU
from kernels.footprint.attention import attention_temporary_bytes, wave_temporary_bytes
from tests.kernels.attention_cases import make_step, run
from tests.kernels.feature_cases import sinks

LLAMA_1B = AttentionShape(
    num_query_heads=32,
    num_kv_heads=8,
    head_dim=64,
    block_size=16,
    element_bytes=2,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
    max_model_len=8192,
)


def test_a_workspace_has_the_bytes_that_were_announced():
    workspace = AttentionWorkspace(LLAMA_1B)
    assert workspace.nbytes == kernels.attention_workspace_bytes(LLAMA_1B, TORCH_CPU)
    assert workspace.buffer.untyped_storage().nbytes() == workspace.nbytes


def test_scratch_does_not_grow_with_the_batch_nor_the_context():
    small = kernels.attention_workspace_bytes(LLAMA_1B, TORCH_CPU)
    for change in ({"max_num_seqs": 4096}, {"max_model_len": 131072}):
        changed = dataclasses.replace(LLAMA_1B, **change)
        assert kernels.attention_workspace_bytes(changed, TORCH_CPU) == small
    assert small < 64 << 20


def test_scratch_of_a_tiny_model_is_tiny():
    tiny = AttentionShape(4, 2, 16, 16, 4, 4, 64, 256)
    assert kernels.attention_workspace_bytes(tiny, TORCH_CPU) < 2 << 20


def test_a_step_stays_within_what_its_shape_announced():
    """The work list of any step needs no more than the shape's largest wave."""
    step = make_step([(1, 900), (200, 700), (9, 9), (40, 41)], heads=(16, 4), head_dim=64)
    listed, _ = step.metadata.work.list_for(0)
    assert listed.scratch_bytes <= kernels.attention_workspace_bytes(step.shape, TORCH_CPU)


FULL_WAVES = ([(512, 512)], [(8, 600)] * 8)
MIXED = [(1, 900), (200, 700), (33, 33)]


FEATURES = {
    "plain": AttentionFeatures(),
    "window": AttentionFeatures(window=600, sinks=sinks(16)),
    "ALiBi": AttentionFeatures(alibi_slopes=alibi_slopes(16)),
    "soft cap": AttentionFeatures(soft_cap=5.0, sinks=sinks(16)),
    "soft cap, ALiBi": AttentionFeatures(window=600, soft_cap=5.0, alibi_slopes=alibi_slopes(16)),
}


STEPS = (*FULL_WAVES, MIXED, [(1, 600)] * 64)
DTYPES = (torch.float32, torch.bfloat16)
# Every step with every feature, in one type or the other: each type with every step and feature.
STEPS_WITH_FEATURES = [
    pytest.param(name, rows, DTYPES[(place + step) % 2], id=f"{name}-{rows[:3]}")
    for place, name in enumerate(FEATURES)
    for step, rows in enumerate(STEPS)
]


@pytest.mark.parametrize(("name", "rows", "dtype"), STEPS_WITH_FEATURES)
def test_torch_allocates_what_was_announced_beyond_the_workspace(name, rows, dtype):
    features = FEATURES[name]
    step = make_step(rows, heads=(16, 4), head_dim=128, dtype=dtype, features=features)
    workspace = AttentionWorkspace(step.shape)
    held = largest = 0
    run(step, features=features)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        kernels.paged_attention(
            step.q,
            step.cache,
            step.metadata,
            scale=step.scale,
            workspace=workspace,
            features=features,
        )
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            largest = max(largest, held)
    taken = largest - step.q.nbytes  # the result
    listed, _ = step.metadata.work.list_for(features.window)
    tiles = {wave.query_tile for wave in listed.waves}
    shape = dataclasses.replace(step.shape, num_threads=torch.get_num_threads())
    met = max(wave_temporary_bytes(shape, tile) for tile in tiles)
    assert 0 < taken <= met <= attention_temporary_bytes(shape)
    assert rows not in FULL_WAVES or met <= 1.05 * taken, "nothing is announced that is not taken"


def test_a_workspace_that_is_too_small_is_refused():
    step = make_step([(1, 900), (200, 700)])
    small = AttentionWorkspace(dataclasses.replace(step.shape, max_model_len=32, head_dim=1))
    with pytest.raises(ValueError, match=r"workspace has \d+ bytes; this step needs \d+"):
        kernels.paged_attention(step.q, step.cache, step.metadata, scale=1.0, workspace=small)


def test_metadata_of_another_shape_is_refused():
    step, other = make_step([(1, 9)], heads=(4, 2)), make_step([(1, 9)], heads=(8, 2))
    with pytest.raises(ValueError, match="metadata was prepared for"):
        kernels.paged_attention(other.q, step.cache, step.metadata, scale=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_lens": torch.tensor([9], dtype=torch.int64)}, "seq_lens is int64"),
        ({"seq_lens": torch.tensor([2], dtype=torch.int32)}, r"seq_lens\[0\] is 2"),
        ({"seq_lens": torch.tensor([99], dtype=torch.int32)}, r"seq_lens\[0\] is 99"),
        ({"query_start_loc": torch.tensor([0, 4], dtype=torch.int32)}, "from 0 to 4"),
        ({"slot_mapping": torch.zeros(3, dtype=torch.int32)}, "slot_mapping is int32"),
        ({"positions": torch.zeros(2, dtype=torch.int64)}, r"positions has shape \[2\]"),
        ({"block_tables": torch.zeros(2, 4, dtype=torch.int32)}, "block_tables has shape"),
    ],
)
def test_a_wrong_step_is_refused_by_name(change, message):
    step = make_step([(3, 9)])
    fields = ("query_start_loc", "seq_lens", "block_tables", "slot_mapping", "positions")
    given = {name: getattr(step.metadata, name) for name in fields}
    with pytest.raises(ValueError, match=message):
        kernels.prepare_attention(**{**given, **change}, shape=step.shape)


def test_rows_without_tokens_are_refused():
    step = make_step([(3, 9), (1, 2)])
    with pytest.raises(ValueError, match="row 1 0 tokens"):
        kernels.prepare_attention(
            query_start_loc=torch.tensor([0, 4, 4], dtype=torch.int32),
            seq_lens=step.metadata.seq_lens,
            block_tables=step.metadata.block_tables,
            slot_mapping=step.metadata.slot_mapping,
            positions=step.metadata.positions,
            shape=step.shape,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_query_heads": 30}, "num_query_heads is 30; it must be a multiple of"),
        ({"block_size": 24}, "block_size is 24; it must be a power of two"),
        ({"element_bytes": 1}, "element_bytes is 1; it must be 2 or 4"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0; it must be at least 1"),
        ({"windows": (0, 0)}, r"windows are \(0, 0\); they must differ"),
        ({"windows": ()}, r"windows are \(\); they must differ"),
    ],
)
def test_a_wrong_shape_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LLAMA_1B, **change)

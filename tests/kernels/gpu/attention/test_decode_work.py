"""The work list of decode attention, and the workspace that holds it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import kernels
from kernels.backends import TORCH_CPU, TRITON_CUDA, attention_workspace_bytes
from kernels.footprint.attention import AttentionShape
from kernels.footprint.gpu_attention import MAX_PROGRAMS
from kernels.gpu import attention, decode_work
from kernels.types import AttentionFeatures, AttentionMetadata
from tests.kernels.attention_cases import make_step
from tests.kernels.gpu.attention.decode_steps import decode_step, metadata_on, poisoned_buffer

# Triton 3.6's interpreter turns arrays of one element into numbers, of which NumPy warns.
TILE = 64
LLAMA_8B = AttentionShape(
    num_query_heads=32,
    num_kv_heads=8,
    head_dim=128,
    block_size=64,
    element_bytes=2,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    max_model_len=131072,
)


def metadata_of(rows: list[tuple[int, int]], device: torch.device) -> AttentionMetadata:
    """Only what a work list is made from; rows are (tokens, context)."""
    starts = [sum(tokens for tokens, _ in rows[:row]) for row in range(len(rows) + 1)]
    lens = [context for _, context in rows]
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    return AttentionMetadata(
        query_start_loc=torch.tensor(starts, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(lens, dtype=torch.int32, device=device),
        block_tables=nothing,
        slot_mapping=nothing,
        positions=nothing,
        max_query_len=max(tokens for tokens, _ in rows),
        max_seq_len=max(lens),
        work=None,
    )


def line_of_tiles(
    rows: list[tuple[int, int]], heads: int, window: int
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int, int]]]:
    """Every (rank, KV head, tile) in order, and the records of the rows that decode."""
    line, records, token = [], [], 0
    for row, (tokens, context) in enumerate(rows):
        if tokens == 1 and context > 0:
            first = max(0, context - window) // TILE if window else 0
            tiles = -(-context // TILE) - first
            line += [(len(records), head, t) for head in range(heads) for t in range(tiles)]
            records.append((row, token, context, first))
        token += tokens
    return line, records


def random_rows(seed: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    count = draw.choice([1, 3, 20, 300])
    longest = 400 if count > 20 else 5000
    return [
        (draw.choice([0, 1, 1, 1, 5]), draw.choice([0, 1, 64, 65, draw.randint(1, longest)]))
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_programs_share_the_line_of_tiles_evenly(device, seed):
    rows, draw = random_rows(seed), random.Random(seed)
    heads, window = draw.choice([1, 2, 8]), draw.choice([0, 1, 64, 150])
    programs, least = draw.choice([1, 5, 17, 40]), draw.choice([1, 2, 4])
    shape = replace(LLAMA_8B, num_query_heads=4 * heads, num_kv_heads=heads, max_num_seqs=300)
    shape = replace(shape, windows=(7, window))
    size = attention_workspace_bytes(shape, TRITON_CUDA)
    buffer = torch.full((size,), 0xFF, dtype=torch.uint8, device=device)
    work = replace(decode_work.plan(shape, buffer), programs=programs, least_tiles=least)
    work.build(metadata_of(rows, device))
    built = work.list_for(window)

    line, records = line_of_tiles(rows, heads, window)
    share = max(least, -(-len(line) // programs))
    assert int(built.header[0]) == share
    starts = built.program_starts.view(-1, 4).tolist()
    for program in range(programs):
        mine = line[program * share : (program + 1) * share]
        assert starts[program][3] == len(mine)
        if mine:
            assert tuple(starts[program][:3]) == mine[0]
    found = built.records.view(-1, 4)[: len(records)].tolist()
    assert [tuple(record) for record in found] == records
    assert not bool(work.scratch.counters[:programs].any())


def test_a_workspace_has_the_bytes_that_were_announced(device):
    """Two parts for each program of a group of heads, two lists, counters; in whole lines."""
    slots = 2 * MAX_PROGRAMS * 4
    shape = replace(LLAMA_8B, windows=(0, 4096))
    lists = 2 * 4 * (4 + 4 * MAX_PROGRAMS + 4 * 256)
    expected = lists + 4 * MAX_PROGRAMS + slots * (128 + 2) * 4
    announced = kernels.attention_workspace_bytes(shape, TRITON_CUDA)
    assert expected <= announced <= expected + 8 * 128
    work = decode_work.plan(shape, torch.empty(announced, dtype=torch.uint8, device=device))
    scratch = work.scratch
    held = (scratch.lists, scratch.counters, scratch.partials, scratch.maxima, scratch.sums)
    assert sum(part.nbytes for part in held) == announced


def test_scratch_does_not_grow_with_the_context_and_hardly_with_the_rows():
    size = kernels.attention_workspace_bytes(LLAMA_8B, TRITON_CUDA)
    longer = replace(LLAMA_8B, max_model_len=1 << 20, max_num_batched_tokens=1 << 17)
    assert kernels.attention_workspace_bytes(longer, TRITON_CUDA) == size
    wider = replace(LLAMA_8B, max_num_seqs=1024)
    assert kernels.attention_workspace_bytes(wider, TRITON_CUDA) - size == 4 * 4 * (1024 - 256)


def test_a_workspace_on_the_cpu_is_the_cpus():
    workspace = kernels.AttentionWorkspace(LLAMA_8B)
    assert workspace.nbytes == attention_workspace_bytes(LLAMA_8B, TORCH_CPU)


def test_a_batch_invariant_step_goes_through_prefill_alone(device, monkeypatch):
    """Every row, one token or many; no list is built and no scratch is needed."""
    step = make_step([(1, 90), (3, 70)], block_size=64)
    shape = replace(step.shape, batch_invariant=True)
    assert attention_workspace_bytes(shape, TRITON_CUDA) == 0
    metadata = metadata_on(step, device)
    work = attention.prepare(metadata, shape, torch.empty(0, dtype=torch.uint8, device=device))
    metadata = replace(metadata, work=work)
    seen = []

    class Prefill:
        @staticmethod
        def paged_prefill(*given):
            seen.append(given[3])
            given[-1].fill_(7)

    monkeypatch.setattr(attention, "import_module", lambda _: Prefill)
    out = attention.paged(step.q.to(device), step.cache.to(device), metadata, 1.0, None)
    assert seen == [shape]
    assert bool((out == 7).all())


def test_prefill_is_asked_only_where_a_row_may_have_several_tokens(device, monkeypatch):
    calls = []

    class Prefill:
        @staticmethod
        def paged_prefill(*given):
            calls.append(given)

    monkeypatch.setattr(attention, "import_module", lambda _: Prefill)
    for rows, expected in (([(1, 90), (1, 5)], 0), ([(1, 90), (3, 5)], 1)):
        step = make_step(rows, block_size=64)
        metadata = metadata_on(step, device)
        work = attention.prepare(metadata, step.shape, poisoned_buffer(step, device))
        metadata = replace(metadata, work=work)
        attention.paged(step.q.to(device), step.cache.to(device), metadata, 1.0, None)
        assert len(calls) == expected


def test_what_does_not_belong_together_is_refused(device):
    step = decode_step([70], block_size=64)
    metadata = metadata_on(step, device)
    q, cache, buffer = step.q.to(device), step.cache.to(device), poisoned_buffer(step, device)
    with pytest.raises(ValueError, match=r"workspace has 64 bytes; this step needs \d+"):
        attention.prepare(metadata, step.shape, buffer[:64])
    with pytest.raises(ValueError, match="metadata was not made by prepare_attention for a GPU"):
        attention.paged(q, cache, metadata, 1.0, None)
    prepared = replace(metadata, work=attention.prepare(metadata, step.shape, buffer))
    with pytest.raises(ValueError, match="workspace is not the one"):
        attention.paged(q, cache, prepared, 1.0, buffer.clone())
    with pytest.raises(ValueError, match="metadata was prepared for"):
        attention.paged(q[:, :2], cache, prepared, 1.0, buffer)
    turned = q.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ValueError, match="the last must be 1"):
        attention.paged(turned, cache, prepared, 1.0, buffer, AttentionFeatures())

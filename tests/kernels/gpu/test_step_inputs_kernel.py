"""Rows and step inputs: the kernels against the oracle, and the CPU backend likewise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch

from kernels import reference
from kernels.cpu import step_inputs as cpu
from kernels.footprint import row_state
from kernels.footprint.row_state import RowLayout, StepTable
from kernels.gpu import step_inputs as gpu
from kernels.types import StepBuffers

NUM_ROWS, VOCAB, MAX_TOKENS = 7, 300, 2600
POISON = -777


@dataclass
class Case:
    """A device's rows and a packet, of a step over ``given`` of them."""

    layout: RowLayout
    table: StepTable
    rows: torch.Tensor
    packet: torch.Tensor
    given: int
    num_tokens: int
    num_samples: int
    block_size: int

    def to(self, device: torch.device) -> Case:
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        parts |= {"rows": self.rows.clone().to(device), "packet": self.packet.clone().to(device)}
        return Case(**parts)

    def buffers(self, padded: int, device: torch.device) -> StepBuffers:
        tokens = self.num_tokens + padded
        shapes = {
            "token_ids": ((tokens,), torch.int64),
            "positions": ((tokens,), torch.int64),
            "slot_mapping": ((tokens,), torch.int64),
            "query_start_loc": ((NUM_ROWS + 1,), torch.int32),
            "seq_lens": ((NUM_ROWS,), torch.int32),
            "block_tables": ((NUM_ROWS, self.layout.max_blocks), torch.int32),
            "floats": ((row_state.NUM_FLOATS, NUM_ROWS), torch.float32),
            "top_k": ((NUM_ROWS,), torch.int64),
            "keys": ((NUM_ROWS,), torch.int64),
            "output_positions": ((NUM_ROWS,), torch.int64),
        }
        return StepBuffers(
            **{
                name: torch.full(shape, POISON, dtype=dtype, device=device)
                for name, (shape, dtype) in shapes.items()
            }
        )


def case(block_size: int, chunks: list[int], seed: int = 0, groups: int = 1) -> Case:
    """Rows in any order, some choosing a token, records full of random words."""
    random = np.random.default_rng(seed)
    layout = RowLayout(-(-MAX_TOKENS // block_size), MAX_TOKENS, groups)
    table = StepTable(NUM_ROWS)
    rows = random.integers(-(2**31), 2**31, (NUM_ROWS, layout.words)).astype(np.int32)
    rows[:, row_state.TABLE_AT : layout.tokens_at] = random.integers(
        0, 2**31 // block_size, (NUM_ROWS, layout.tokens_at - row_state.TABLE_AT)
    )
    rows[:, layout.tokens_at :] = random.integers(0, VOCAB, (NUM_ROWS, MAX_TOKENS + 16))[
        :, : layout.words - layout.tokens_at
    ]
    floats = slice(row_state.FLOATS_AT, row_state.FLOATS_AT + row_state.NUM_FLOATS)
    rows[:, floats] = random.random((NUM_ROWS, 6)).astype(np.float32).view(np.int32)
    packet = random.integers(-(2**31), 2**31, table.words + 4000).astype(np.int32)
    given = len(chunks)
    packet[0] = given
    packet[table.rows_at :][:given] = random.permutation(NUM_ROWS)[:given]
    packet[table.starts_at :][: given + 1] = np.cumsum([0, *chunks])
    packet[table.computed_at :][:given] = [random.integers(0, MAX_TOKENS - n) for n in chunks]
    chooses = random.random(given) < 0.7
    chooses[:1] = True
    packet[table.samples_at :][:given] = np.where(chooses, np.cumsum(chooses) - 1, -1)
    packet[table.outputs_at :][:given] = random.integers(0, 1000, given)
    return Case(
        layout,
        table,
        torch.from_numpy(rows),
        torch.from_numpy(packet),
        given,
        sum(chunks),
        int(chooses.sum()),
        block_size,
    )


def assert_same(expected: StepBuffers, got: StepBuffers) -> None:
    for name in StepBuffers.__slots__:
        want, have = getattr(expected, name), getattr(got, name).cpu()
        assert torch.equal(want, have), name


class Backend(NamedTuple):
    kernels: ModuleType
    device: torch.device


@pytest.fixture(params=["gpu", "cpu"])
def backend(request: pytest.FixtureRequest, device: torch.device) -> Backend:
    return Backend(gpu, device) if request.param == "gpu" else Backend(cpu, torch.device("cpu"))


CASES = [
    pytest.param(16, [1], 1, id="one row"),
    pytest.param(64, [1, 1, 1], 3, id="decode"),
    pytest.param(64, [1, 1, 1], 7, id="decode, filled up"),
    pytest.param(16, [], 2, id="nothing but filling"),
    pytest.param(32, [1, 700, 33, 1, 513], 5, id="mixed"),
    pytest.param(128, [512, 1], 4, id="mixed, filled up"),
]


@pytest.mark.parametrize(("block_size", "chunks", "padded"), CASES)
def test_a_step_is_gathered_from_rows(
    backend: Backend, block_size: int, chunks: list[int], padded: int
) -> None:
    assert_gathered(backend, case(block_size, chunks, seed=len(chunks)), padded)


@pytest.mark.parametrize("group", range(3))
def test_each_group_of_the_cache_has_its_own_tables(backend: Backend, group: int) -> None:
    assert_gathered(backend, case(64, [1, 130, 1], seed=9, groups=3), 3, group)


def assert_gathered(backend: Backend, given: Case, padded: int, group: int = 0) -> None:
    block_size, chunks = given.block_size, given.given
    expected = given.buffers(padded, torch.device("cpu"))
    reference.gather_step(
        given.rows,
        given.packet,
        expected,
        layout=given.layout,
        table=given.table,
        num_rows=padded,
        block_size=block_size,
        group=group,
    )
    there, got = given.to(backend.device), given.buffers(padded, backend.device)
    if backend.kernels is cpu and not chunks:
        got.query_start_loc[0] = 0
    backend.kernels.gather_step(
        there.rows, there.packet, got, given.layout, given.table, padded, block_size, group
    )
    if backend.kernels is cpu:  # it copies all rows' tables as wide as the longest
        for b, length in enumerate(expected.seq_lens[: given.given].tolist()):
            got.block_tables[b, -(-length // block_size) :] = POISON
    assert_same(expected, got)


def test_segments_land_where_they_belong(backend: Backend) -> None:
    given = case(16, [1])
    segments = [(2, 0, 200, 16), (5, 21, 300, 1), (0, 1000, 400, 1500), (6, 40, 700, 0)]
    at = given.table.words + 3
    given.packet[at : at + 16] = torch.tensor(segments, dtype=torch.int32).view(-1)
    expected = given.rows.clone()
    reference.write_rows(expected, given.packet, segments_at=at, num_segments=len(segments))
    assert not torch.equal(expected, given.rows)
    there = given.to(backend.device)
    backend.kernels.write_rows(there.rows, there.packet, at, len(segments))
    assert torch.equal(there.rows.cpu(), expected)


def test_counts_are_rebuilt_and_nothing_else_is_touched(backend: Backend) -> None:
    given = case(16, [1])
    given.rows[:, row_state.COUNTS] = torch.tensor([3, 1, 3, 0, 3, 1, 3], dtype=torch.int32)
    entries = [(0, 1200, 2500), (4, 5, 5), (1, 3, 1030), (6, 0, 0)]
    at = given.table.words
    given.packet[at : at + 12] = torch.tensor(entries, dtype=torch.int32).view(-1)
    counts = torch.full((NUM_ROWS, VOCAB), 9, dtype=torch.int32)
    mask = torch.ones(NUM_ROWS, VOCAB, dtype=torch.bool)
    expected = counts.clone(), mask.clone()
    reference.count_tokens(
        given.rows, given.packet, *expected, layout=given.layout, counted_at=at, num_counted=4
    )
    there = given.to(backend.device)
    got = counts.to(there.rows.device), mask.to(there.rows.device)
    backend.kernels.count_tokens(there.rows, there.packet, *got, given.layout, at, 4)
    assert torch.equal(got[0].cpu(), expected[0])
    assert torch.equal(got[1].cpu(), expected[1])
    assert expected[0][3].eq(9).all()


def test_chosen_tokens_follow_their_rows(backend: Backend) -> None:
    assert_committed(backend)


def assert_committed(backend: Backend) -> None:
    given = case(16, [1, 40, 1, 3, 1], seed=3)
    given.rows[:, row_state.COUNTS] = torch.tensor([3, 1, 0, 3, 1, 0, 3], dtype=torch.int32)
    last = given.table.computed_at + given.given - 1
    given.packet[last] = MAX_TOKENS - 1  # a row that is full takes no token
    tokens = torch.randint(0, VOCAB, (given.num_samples,))
    non_finite = torch.zeros(given.num_samples, dtype=torch.bool)
    non_finite[1] = True
    counts = torch.full((NUM_ROWS, VOCAB), 9, dtype=torch.int32)
    expected = given.rows.clone(), counts.clone(), torch.full((given.num_samples,), POISON).int()

    def run(function: Callable[..., None], case: Case, *outputs: torch.Tensor) -> None:
        where = case.rows.device
        arguments = (case.packet, tokens.to(where), non_finite.to(where), *outputs)
        function(case.rows, *arguments, case.layout, case.table, case.given)

    reference.commit_tokens(
        expected[0],
        given.packet,
        tokens,
        non_finite,
        *expected[1:],
        layout=given.layout,
        table=given.table,
        num_rows=given.given,
    )
    there = given.to(backend.device)
    got = counts.to(there.rows.device), expected[2].new_full((given.num_samples,), POISON)
    outputs = got[0], got[1].to(there.rows.device)
    run(backend.kernels.commit_tokens, there, *outputs)
    assert torch.equal(there.rows.cpu(), expected[0])
    assert torch.equal(outputs[0].cpu(), expected[1])
    assert torch.equal(outputs[1].cpu(), expected[2])
    assert (expected[0] != given.rows).sum() >= 2

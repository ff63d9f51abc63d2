"""Rows from plans, and a step's arrays from rows: the host's side, then the kernels' on a CPU."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels.footprint.row_state import (
    COUNTED_WORDS,
    NUM_FLOATS,
    SEGMENT_WORDS,
    RowLayout,
    StepTable,
)
from server.engine.request import SamplingParams
from server.engine.step_plan import AdmittedRow, PlannedRow, StepPlan
from server.execution.packet import PacketDraft
from server.execution.rows import Rows
from server.execution.sampler import Sampler
from server.execution.sampling_batch import plan_sampling
from server.memory.runner_buffers import LogitLimits

ROWS, LENGTH, BLOCK, VOCAB = 4, 32, 4, 50
LAYOUT, TABLE = RowLayout(LENGTH // BLOCK, LENGTH), StepTable(ROWS)
LIMITS = LogitLimits(ROWS, ROWS, ROWS, num_tops=(0, 1, 2))
EOS = (4, 5)


class Batch:
    """Rows as a runner has them, without a model."""

    def __init__(self) -> None:
        self.rows = Rows(LAYOUT, max_num_seqs=ROWS, block_size=BLOCK)
        self.state = torch.zeros(ROWS, LAYOUT.words, dtype=torch.int32)
        self.counts = torch.zeros(ROWS, VOCAB, dtype=torch.int32)
        self.mask = torch.zeros(ROWS, VOCAB, dtype=torch.bool)
        self.inputs = kernels.StepBuffers(
            token_ids=torch.zeros(16, dtype=torch.int64),
            positions=torch.zeros(16, dtype=torch.int64),
            slot_mapping=torch.zeros(16, dtype=torch.int64),
            query_start_loc=torch.zeros(ROWS + 1, dtype=torch.int32),
            seq_lens=torch.zeros(ROWS, dtype=torch.int32),
            block_tables=torch.zeros(ROWS, LENGTH // BLOCK, dtype=torch.int32),
            floats=torch.zeros(NUM_FLOATS, ROWS),
            top_k=torch.zeros(ROWS, dtype=torch.int64),
            keys=torch.zeros(ROWS, dtype=torch.int64),
            output_positions=torch.zeros(ROWS, dtype=torch.int64),
        )

    def apply(self, plan: StepPlan) -> None:
        draft = PacketDraft(TABLE)
        changes = self.rows.apply(plan, draft)
        packet, segments, counted = self._written(draft), changes.segments, changes.counted
        kernels.write_rows(
            self.state,
            packet,
            segments_at=segments.first,
            num_segments=segments.length // SEGMENT_WORDS,
        )
        kernels.count_tokens(
            self.state,
            packet,
            self.counts,
            self.mask,
            layout=LAYOUT,
            counted_at=counted.first,
            num_counted=counted.length // COUNTED_WORDS,
        )

    def step(self, *planned: PlannedRow) -> kernels.SamplingTensors | None:
        """Gathers the step's inputs; what the sampler is given, where a row chooses a token."""
        step = self.rows.step(planned)
        draft = PacketDraft(TABLE)
        draft.set_rows(step.rows, step.starts, step.computed, step.places, step.outputs)
        work = plan_sampling(
            StepPlan(9, rows=planned), self.rows, step, draft, limits=LIMITS, eos_token_ids=EOS
        )
        self.packet, self.last = self._written(draft), step
        kernels.gather_step(
            self.state,
            self.packet,
            self.inputs,
            layout=LAYOUT,
            table=TABLE,
            num_rows=step.num_rows,
            block_size=BLOCK,
        )
        if not work.parts:
            return None
        names = {"floats": "step_floats", "top_k": "step_top_k", "keys": "step_keys"}
        buffers = {to: getattr(self.inputs, name) for name, to in names.items()} | {
            "row_state": self.state,
            "output_counts": self.counts,
            "prompt_mask": self.mask,
            "step_output_positions": self.inputs.output_positions,
        }
        sampler = Sampler(buffers, lambda hidden, out: hidden, LIMITS)
        return sampler._tensors(work, work.parts[0][0], self.packet)

    def choose(self, *token_ids: int) -> None:
        """Every row of the last step that chooses gets its token."""
        self.rows.append(self.last)
        kernels.commit_tokens(
            self.state,
            self.packet,
            torch.tensor(token_ids),
            torch.zeros(len(token_ids), dtype=torch.bool),
            self.counts,
            torch.zeros(len(token_ids), dtype=torch.int32),
            layout=LAYOUT,
            table=TABLE,
            num_rows=self.last.num_rows,
        )

    @staticmethod
    def _written(draft: PacketDraft) -> torch.Tensor:
        packet = torch.zeros(draft.num_words, dtype=torch.int32)
        draft.write(packet.numpy())
        return packet


def admit(
    row: int,
    tokens: list[int],
    blocks: tuple[int, ...],
    *,
    prompt: int | None = None,
    computed: int = 0,
    sampling: SamplingParams | None = None,
) -> StepPlan:
    admitted = AdmittedRow(
        row=row,
        token_ids=tuple(tokens),
        num_prompt_tokens=len(tokens) if prompt is None else prompt,
        num_computed_tokens=computed,
        sampling=sampling or SamplingParams(seed=1),
        choice=0,
        block_tables=(blocks,),
    )
    return StepPlan(1, admitted=(admitted,))


def sampled(batch: Batch, *planned: PlannedRow) -> kernels.SamplingTensors:
    given = batch.step(*planned)
    assert given is not None
    return given


def test_a_mixed_step_is_laid_out_row_after_row() -> None:
    batch = Batch()
    batch.apply(admit(2, [10, 11, 12, 13, 14, 15], (7, 3)))
    batch.apply(admit(0, [20, 21, 22], (5,), computed=2))
    batch.step(PlannedRow(0, 1), PlannedRow(2, 5))
    inputs = batch.inputs
    assert inputs.token_ids[:6].tolist() == [22, 10, 11, 12, 13, 14]
    assert inputs.positions[:6].tolist() == [2, 0, 1, 2, 3, 4]
    assert inputs.slot_mapping[:6].tolist() == [22, 28, 29, 30, 31, 12]
    assert inputs.query_start_loc[:3].tolist() == [0, 1, 6]
    assert inputs.seq_lens[:2].tolist() == [3, 5]
    assert inputs.block_tables[0, 0] == 5
    assert inputs.block_tables[1, :2].tolist() == [7, 3]


def test_the_next_step_goes_on_where_the_last_one_ended() -> None:
    batch = Batch()
    batch.apply(admit(1, [10, 11, 12, 13], (9,)))
    batch.step(PlannedRow(1, 4, samples=True))
    batch.choose(33)
    batch.apply(StepPlan(2, rows=(PlannedRow(1, 1, new_block_ids=((4,),)),)))
    batch.step(PlannedRow(1, 1))
    assert batch.inputs.token_ids[0] == 33
    assert batch.inputs.positions[0] == 4
    assert batch.inputs.slot_mapping[0] == 16


def test_a_resumed_row_counts_what_it_had_generated() -> None:
    batch = Batch()
    sampling = SamplingParams(seed=5, repetition_penalty=1.3, presence_penalty=1.0)
    batch.apply(admit(0, [3, 4, 7, 7, 9], (2, 8), prompt=2, sampling=sampling))
    batch.step(PlannedRow(0, 5, samples=True))
    batch.choose(9)
    given = sampled(batch, PlannedRow(0, 1, samples=True))
    assert given.output_counts is not None and given.prompt_mask is not None
    assert {i: int(n) for i, n in enumerate(given.output_counts[0]) if n} == {7: 2, 9: 2}
    assert given.prompt_mask[0].nonzero().view(-1).tolist() == [3, 4]
    assert given.position is not None and given.position.tolist() == [4]


def test_a_row_that_is_taken_over_forgets_its_last_owner() -> None:
    batch = Batch()
    penalised = SamplingParams(seed=5, repetition_penalty=1.3)
    batch.apply(admit(0, [3, 4, 7, 7], (2, 8), prompt=2, sampling=penalised))
    batch.apply(StepPlan(2, released=(0,)))
    batch.apply(admit(0, [11], (6,), sampling=penalised))
    given = sampled(batch, PlannedRow(0, 1, samples=True))
    assert given.output_counts is not None and given.prompt_mask is not None
    assert int(given.output_counts.sum()) == 0
    assert given.prompt_mask[0].nonzero().view(-1).tolist() == [11]


def test_a_greedy_row_asks_the_sampler_for_nothing_else() -> None:
    batch = Batch()
    batch.apply(admit(0, [3], (2,), sampling=SamplingParams(seed=5, temperature=0.0, top_k=5)))
    given = sampled(batch, PlannedRow(0, 1, samples=True))
    named = [name for name in given.__slots__ if getattr(given, name) is not None]
    assert named == ["temperature"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["temperature", "key", "position"]),
        ({"top_k": 5}, ["temperature", "top_k", "top_p", "min_p", "key", "position"]),
        ({"min_p": 0.1}, ["temperature", "top_k", "top_p", "min_p", "key", "position"]),
        (
            {"temperature": 0.0, "presence_penalty": 0.5},
            [
                *("temperature", "presence", "frequency", "repetition"),
                *("output_counts", "prompt_mask"),
            ],
        ),
        ({"temperature": 0.0, "logit_bias": ((3, 1.0),)}, ["temperature", "bias"]),
    ],
)
def test_features_are_given_in_groups(changes: dict[str, object], names: list[str]) -> None:
    batch = Batch()
    sampling = SamplingParams(seed=5, **changes)  # type: ignore[arg-type]
    batch.apply(admit(2, [3], (2,), sampling=sampling))
    given = sampled(batch, PlannedRow(2, 1, samples=True))
    assert [name for name in given.__slots__ if getattr(given, name) is not None] == names


def test_forbidden_ids_and_biases_name_the_place_in_the_batch() -> None:
    batch = Batch()
    batch.apply(admit(3, [3], (2,), sampling=SamplingParams(seed=5, logit_bias=((7, 2.0),))))
    batch.apply(admit(1, [3], (2,)))
    given = sampled(
        batch,
        PlannedRow(1, 1, samples=True, min_tokens_pending=True),
        PlannedRow(3, 1, samples=True),
    )
    assert given.bias is not None and given.forbidden is not None
    assert given.bias.rows.tolist() == [1]
    assert given.bias.ids.tolist() == [7]
    assert given.forbidden.rows.tolist() == [0, 0]
    assert given.forbidden.ids.tolist() == list(EOS)


def test_a_row_that_is_full_takes_no_token() -> None:
    batch = Batch()
    batch.apply(admit(0, list(range(LENGTH)), tuple(range(8)), computed=LENGTH - 1))
    batch.step(PlannedRow(0, 1, samples=True))
    with pytest.raises(
        ValueError, match="row 0 holds 32 tokens, and has no room for 1 more: max_model_len is 32"
    ):
        batch.choose(1)

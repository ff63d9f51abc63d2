"""Rows from plans, and the arrays of a step from rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from server.engine.request import SamplingParams
from server.engine.step_plan import AdmittedRow, PlannedRow, StepPlan
from server.execution.input_batch import InputBatch

ROWS, LENGTH, BLOCK, VOCAB = 4, 32, 4, 50


def batch() -> InputBatch:
    long, short = torch.int64, torch.int32
    buffers = {
        "token_ids": torch.zeros(ROWS, LENGTH, dtype=short),
        "block_tables": torch.zeros(ROWS, LENGTH // BLOCK, dtype=short),
        "output_counts": torch.zeros(ROWS, VOCAB, dtype=short),
        "prompt_mask": torch.zeros(ROWS, VOCAB, dtype=torch.bool),
        "row_lengths": torch.zeros(4, ROWS, dtype=long),
        "row_sampling": torch.zeros(6, ROWS),
        "row_top_k": torch.zeros(ROWS, dtype=long),
        "row_keys": torch.zeros(ROWS, dtype=long),
        "step_token_ids": torch.zeros(16, dtype=long),
        "positions": torch.zeros(16, dtype=long),
        "slot_mapping": torch.zeros(16, dtype=long),
        "query_start_loc": torch.zeros(ROWS + 1, dtype=short),
        "seq_lens": torch.zeros(ROWS, dtype=short),
        "step_block_tables": torch.zeros(ROWS, LENGTH // BLOCK, dtype=short),
    }
    return InputBatch(buffers, block_size=BLOCK, vocab_size=VOCAB)


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


def test_a_mixed_step_is_laid_out_row_after_row() -> None:
    rows = batch()
    rows.apply(admit(2, [10, 11, 12, 13, 14, 15], (7, 3)))
    rows.apply(admit(0, [20, 21, 22], (5,), computed=2))
    inputs = rows.step_inputs((PlannedRow(0, 1), PlannedRow(2, 5)))
    assert inputs.token_ids.tolist() == [22, 10, 11, 12, 13, 14]
    assert inputs.positions.tolist() == [2, 0, 1, 2, 3, 4]
    assert inputs.slot_mapping.tolist() == [22, 28, 29, 30, 31, 12]
    assert inputs.query_start_loc.tolist() == [0, 1, 6]
    assert inputs.seq_lens.tolist() == [3, 5]
    assert inputs.block_tables[0, 0] == 5
    assert inputs.block_tables[1].tolist() == [7, 3]


def test_the_next_step_goes_on_where_the_last_one_ended() -> None:
    rows = batch()
    rows.apply(admit(1, [10, 11, 12, 13], (9,)))
    rows.step_inputs((PlannedRow(1, 4),))
    rows.append(1, 33)
    rows.apply(StepPlan(2, rows=(PlannedRow(1, 1, new_block_ids=((4,),)),)))
    inputs = rows.step_inputs((PlannedRow(1, 1),))
    assert inputs.token_ids.tolist() == [33]
    assert inputs.positions.tolist() == [4]
    assert inputs.slot_mapping.tolist() == [16]


def test_a_resumed_row_counts_what_it_had_generated() -> None:
    rows = batch()
    sampling = SamplingParams(seed=5, repetition_penalty=1.3, presence_penalty=1.0)
    rows.apply(admit(0, [3, 4, 7, 7, 9], (2, 8), prompt=2, sampling=sampling))
    rows.append(0, 9)
    params = rows.sampling.tensors(np.array([0]), np.array([4]), [()])
    assert params.output_counts is not None and params.prompt_mask is not None
    assert {i: int(n) for i, n in enumerate(params.output_counts[0]) if n} == {7: 2, 9: 2}
    assert params.prompt_mask[0].nonzero().view(-1).tolist() == [3, 4]


def test_a_row_that_is_taken_over_forgets_its_last_owner() -> None:
    rows = batch()
    penalised = SamplingParams(seed=5, repetition_penalty=1.3)
    rows.apply(admit(0, [3, 4, 7, 7], (2, 8), prompt=2, sampling=penalised))
    rows.apply(StepPlan(2, released=(0,)))
    rows.apply(admit(0, [11], (6,), sampling=penalised))
    params = rows.sampling.tensors(np.array([0]), np.array([0]), [()])
    assert params.output_counts is not None and params.prompt_mask is not None
    assert int(params.output_counts.sum()) == 0
    assert params.prompt_mask[0].nonzero().view(-1).tolist() == [11]


def test_a_greedy_row_asks_the_sampler_for_nothing_else() -> None:
    rows = batch()
    rows.apply(admit(0, [3], (2,), sampling=SamplingParams(seed=5, temperature=0.0, top_k=5)))
    params = rows.sampling.tensors(np.array([0]), np.array([0]), [()])
    given = [name for name in params.__slots__ if getattr(params, name) is not None]
    assert given == ["temperature"]


def test_forbidden_ids_and_biases_name_the_place_in_the_batch() -> None:
    rows = batch()
    rows.apply(admit(3, [3], (2,), sampling=SamplingParams(seed=5, logit_bias=((7, 2.0),))))
    rows.apply(admit(1, [3], (2,)))
    params = rows.sampling.tensors(np.array([1, 3]), np.array([0, 0]), [(4, 5), ()])
    assert params.bias is not None and params.forbidden is not None
    assert params.bias.rows.tolist() == [1]
    assert params.bias.ids.tolist() == [7]
    assert params.forbidden.rows.tolist() == [0, 0]
    assert params.forbidden.ids.tolist() == [4, 5]


@pytest.mark.parametrize(
    ("planned", "message"),
    [(PlannedRow(0, 5), "knows 4 tokens"), (PlannedRow(1, 1), "knows 0 tokens")],
)
def test_tokens_that_a_row_does_not_have_are_refused(planned: PlannedRow, message: str) -> None:
    rows = batch()
    rows.apply(admit(0, [10, 11, 12, 13], (9,)))
    with pytest.raises(ValueError, match=message):
        rows.step_inputs((planned,))


def test_slots_that_a_row_does_not_have_are_refused() -> None:
    rows = batch()
    rows.apply(admit(0, [10, 11, 12, 13, 14], (9,)))
    with pytest.raises(ValueError, match="row 0 has 1 blocks"):
        rows.step_inputs((PlannedRow(0, 5),))

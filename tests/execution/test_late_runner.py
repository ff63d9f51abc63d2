"""A runner on a device that runs late: its bookkeeping, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from server.engine.step_plan import AdmittedRow, PlannedRow, StepPlan
from server.memory import runner_buffers
from tests.execution import stepping
from tests.execution.late_plans import (
    GREEDY,
    IDS,
    PENALISED,
    Late,
    assert_same,
    decode,
    no_tensor_operation,
    prompts,
    start,
)

# -- two steps in flight -------------------------------------------------------------------------


def test_a_step_reads_the_token_that_the_step_in_flight_chooses(late: Late) -> None:
    plans = [prompts([GREEDY, PENALISED]), *(decode(i, [0, 1]) for i in range(2, 12))]
    built = late.assert_as_on_cpu(plans)
    assert built.device.replays == 10
    assert built.device.most_queued >= 6  # upload, forward and sample, twice


def test_a_decode_step_makes_the_host_wait_for_nothing(late: Late) -> None:
    built = late.build()
    runner, device = built.runner, built.device
    pending = [start(runner, prompts([GREEDY, PENALISED, GREEDY]))]
    pending.append(start(runner, decode(2, [0, 1, 2])))  # captures
    for step_id in range(3, 8):
        pending.pop(0).result()
        before, done = device.waits, device.done
        with no_tensor_operation():
            pending.append(start(runner, decode(step_id, [0, 1, 2])))
        assert device.waits == before
        assert device.done == done
    assert device.captures == 1


def test_a_result_can_be_asked_for_late_and_again(late: Late) -> None:
    plans = [prompts([GREEDY]), *(decode(i, [0]) for i in range(2, 7))]
    expected = late.on_cpu(plans)
    built = late.build()
    pending = [start(built.runner, plan) for plan in plans]  # more than the two that have a slot
    for late, want in reversed(list(zip(pending, expected, strict=True))):
        assert_same(late.result(), want)
        assert late.result() is late.result()


def test_a_row_that_ended_wastes_one_step_and_its_blocks_come_back_after_it(late: Late) -> None:
    """Row 1 ends at step 2, which the host learns when step 3 is on its way already."""
    newcomer = AdmittedRow(1, tuple(IDS[4:19]), 15, 0, PENALISED, 0, ((4, 3),))  # row 1's blocks
    take_over = decode(4, [0], released=(1,), admitted=(newcomer,))
    take_over = replace(take_over, rows=(*take_over.rows, PlannedRow(1, 15, samples=True)))
    plans = [
        prompts([GREEDY, PENALISED]),
        decode(2, [0, 1]),
        decode(3, [0, 1]),  # row 1 for nothing
        take_over,
        decode(5, [0, 1]),
        decode(6, [1, 0]),
    ]
    late.assert_as_on_cpu(plans)


def test_a_row_that_was_not_finite_gives_no_token_and_spoils_no_other(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [prompts([GREEDY, GREEDY]), decode(2, [0, 1]), decode(3, [0, 1]), decode(4, [0])]
    expected = late.on_cpu(plans)
    built = late.build()
    real = built.runner.decoder.logits
    spoil = [False]

    def logits(hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        real(hidden, out)
        if spoil[0]:
            out[1].fill_(float("inf"))
        return out

    monkeypatch.setattr(built.runner.step._sampler, "_logits", logits)
    spoil[0] = True
    first = start(built.runner, plans[0])
    second = start(built.runner, plans[1])  # counts on a token of row 1 that never comes
    result = first.result()
    spoil[0] = False
    assert [row.non_finite for row in result.rows] == [False, True]
    assert result.rows[1].token_ids == ()
    assert result.rows[1].logprobs is None
    assert result.rows[0] == replace(expected[0].rows[0], logprobs=result.rows[0].logprobs)
    third = start(built.runner, replace(plans[3], step_id=3, released=(1,)))
    assert second.result().rows[0].token_ids == expected[1].rows[0].token_ids
    assert third.result().rows[0].token_ids == expected[2].rows[0].token_ids


# -- rows ----------------------------------------------------------------------------------------


def test_a_resumed_row_counts_what_it_had_generated_and_draws_on(late: Late) -> None:
    first = [prompts([GREEDY, PENALISED]), *(decode(i, [0, 1]) for i in range(2, 8))]
    known = [*IDS[:16]]
    for result in late.on_cpu(first):
        known += result.rows[1].token_ids
    resumed = AdmittedRow(1, tuple(known), 16, 0, PENALISED, 0, ((9, 7, 8),))
    plans = [
        *first,
        decode(8, [0], released=(1,)),
        replace(
            decode(9, [0], admitted=(resumed,)),
            rows=(PlannedRow(1, len(known), samples=True), PlannedRow(0, 1, samples=True)),
        ),
        *(decode(i, [0, 1]) for i in range(10, 16)),
    ]
    late.assert_as_on_cpu(plans)


def test_a_fork_copies_its_partial_block_before_anything_is_written(late: Late) -> None:
    """Row 1 goes on from row 0's prompt: block 2 is shared, block 1 copied to 5."""
    whole = stepping.admitted(IDS, PENALISED, (2, 1))
    fork = AdmittedRow(1, tuple(IDS), len(IDS), len(IDS) - 1, PENALISED, 1, ((2, 5),))
    plans = [
        StepPlan(1, rows=(PlannedRow(0, len(IDS), samples=True),), admitted=(whole,)),
        decode(2, [0, 1], admitted=(fork,), block_copies=((1, 5),)),
        *(decode(i, [0, 1]) for i in range(3, 10)),
    ]
    late.assert_as_on_cpu(plans)


def test_a_row_grows_into_new_blocks(late: Late) -> None:
    row = stepping.admitted(IDS[:15], GREEDY, (7,))
    plans = [
        StepPlan(1, rows=(PlannedRow(0, 15, samples=True),), admitted=(row,)),
        decode(2, [0]),
        StepPlan(3, rows=(PlannedRow(0, 1, new_block_ids=((3, 9),), samples=True),)),
        *(decode(i, [0]) for i in range(4, 30)),
    ]
    late.assert_as_on_cpu(plans)


def test_a_packet_longer_than_its_buffer_goes_up_all_the_same(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    biased = replace(GREEDY, logit_bias=tuple((i, i / 50) for i in range(100)))
    plans = [
        prompts([biased, PENALISED]),
        *(decode(i, [0, 1]) for i in range(2, 6)),
    ]
    monkeypatch.setattr(runner_buffers, "packet_words", lambda model, config: 144)
    built = late.assert_as_on_cpu(plans)
    assert built.layout.buffer("packet").shape == (144,)
    assert built.runner.step.table.words <= 144


# -- logits and log-probabilities ----------------------------------------------------------------


@pytest.mark.parametrize("logit_rows", [1, 2, 3, 512])
def test_any_bound_on_rows_of_logits_gives_the_same_answers(logit_rows: int, late: Late) -> None:
    scored = replace(GREEDY, prompt_logprobs=3)
    silent = replace(PENALISED, logprobs=None)
    biased = replace(GREEDY, logprobs=0, logit_bias=((7, 9.0), (12, 8.5)))
    rows = [silent, biased, PENALISED, scored, replace(scored, prompt_logprobs=0), silent]
    plan = prompts(rows)
    planned = tuple(
        replace(row, num_prompt_logits=row.num_scheduled_tokens - 1, min_tokens_pending=True)
        if rows[row.row].prompt_logprobs is not None
        else row
        for row in plan.rows
    )
    plans = [replace(plan, rows=planned), *(decode(i, [0, 1, 2, 3, 4, 5]) for i in range(2, 7))]
    late.assert_as_on_cpu(plans, max_logit_rows=logit_rows)

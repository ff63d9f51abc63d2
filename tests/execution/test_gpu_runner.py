"""A runner on a device that runs late: its bookkeeping, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import checks
import gpu_runners
import harness
import numpy as np
import pytest
import stepping
import torch
import workloads
from fake_device import NotEnqueued
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from server.engine.plan import AdmittedRow, PendingResult, PlannedRow, StepPlan, StepResult
from server.engine.request import SamplingParams
from server.execution.gpu_warm_up import warm_up
from server.execution.live_bytes import LiveBytes
from server.execution.model_runner import ModelRunner
from server.execution.packing import unpack_logprobs
from server.execution.warm_up import largest_plan
from server.memory import gpu_layout
from server.memory.layout import MemoryKind
from weights.synthetic import tiny_gpt2, tiny_llama, write_checkpoint

IDS = list(workloads.prompt(3, 21))
GREEDY = SamplingParams(seed=0, temperature=0.0, max_tokens=64, logprobs=2)
PENALISED = replace(workloads.SEEDED, logprobs=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checks.write("llama", tmp_path_factory.mktemp("llama"))


def build(folder: Path, patch: pytest.MonkeyPatch, **changes: object) -> gpu_runners.FakeBuilt:
    return gpu_runners.build(folder, patch, max_model_len=256, **changes)  # type: ignore[arg-type]


def prompts(samplings: list[SamplingParams], first_block: int = 0) -> StepPlan:
    """A row for each, its prompt starting elsewhere; three blocks a row."""
    rows = range(len(samplings))
    tables = [stepping.blocks_for(48, 16, first=first_block + 3 * row) for row in rows]
    admitted = tuple(
        stepping.admitted(IDS[: 15 + row], samplings[row], tables[row], row=row) for row in rows
    )
    planned = tuple(PlannedRow(row, 15 + row, samples=True) for row in rows)
    return StepPlan(1, rows=planned, admitted=admitted)


def decode(step_id: int, rows: list[int], **changes: object) -> StepPlan:
    planned = tuple(PlannedRow(row, 1, samples=True) for row in rows)
    return replace(StepPlan(step_id, rows=planned), **changes)  # type: ignore[arg-type]


def start(runner: Any, plan: StepPlan) -> PendingResult:
    return runner.sample(runner.forward(plan), None)  # type: ignore[no-any-return]


def assert_same(got: StepResult, expected: StepResult) -> None:
    assert got.step_id == expected.step_id
    assert len(got.rows) == len(expected.rows)
    for mine, theirs in zip(got.rows, expected.rows, strict=True):
        assert (mine.row, mine.token_ids) == (theirs.row, theirs.token_ids)
        assert mine.non_finite == theirs.non_finite
        for name in ("logprobs", "prompt_logprobs"):
            ours, others = getattr(mine, name), getattr(theirs, name)
            assert (ours is None) == (others is None)
            if ours is not None:
                ids, nats = unpack_logprobs(ours)
                other_ids, other_nats = unpack_logprobs(others)
                np.testing.assert_array_equal(ids, other_ids)
                np.testing.assert_allclose(nats, other_nats, atol=1e-5, rtol=0)


def on_cpu(folder: Path, plans: list[StepPlan], **changes: object) -> list[StepResult]:
    runner: ModelRunner = stepping.built(folder, max_model_len=256, **changes).runner
    return [stepping.step(runner, plan) for plan in plans]


def assert_as_on_cpu(
    folder: Path, patch: pytest.MonkeyPatch, plans: list[StepPlan], **changes: object
) -> gpu_runners.FakeBuilt:
    """Two steps in flight all the way, and the same answers as one after the other on a CPU."""
    expected = on_cpu(folder, plans, **changes)
    built = build(folder, patch, **changes)
    in_flight: list[PendingResult] = []
    results: list[StepResult] = []
    for plan in plans:
        in_flight.append(start(built.runner, plan))
        if len(in_flight) == 2:
            results.append(in_flight.pop(0).result())
    results += [pending.result() for pending in in_flight]
    for got, want in zip(results, expected, strict=True):
        assert_same(got, want)
    return built


# -- two steps in flight -------------------------------------------------------------------------


def test_a_step_reads_the_token_that_the_step_in_flight_chooses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [prompts([GREEDY, PENALISED]), *(decode(i, [0, 1]) for i in range(2, 12))]
    built = assert_as_on_cpu(folder, monkeypatch, plans)
    assert built.device.replays == 10
    assert built.device.most_queued >= 8  # upload, changes, forward and sample, twice


def test_a_decode_step_makes_the_host_wait_for_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(folder, monkeypatch)
    runner, device = built.runner, built.device
    pending = [start(runner, prompts([GREEDY, PENALISED, GREEDY]))]
    pending.append(start(runner, decode(2, [0, 1, 2])))  # captures
    for step_id in range(3, 8):
        pending.pop(0).result()
        before, done = device.waits, device.done
        with _no_tensor_operation():
            pending.append(start(runner, decode(step_id, [0, 1, 2])))
        assert device.waits == before
        assert device.done == done
    assert device.captures == 1


def test_a_result_can_be_asked_for_late_and_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [prompts([GREEDY]), *(decode(i, [0]) for i in range(2, 7))]
    expected = on_cpu(folder, plans)
    built = build(folder, monkeypatch)
    pending = [start(built.runner, plan) for plan in plans]  # more than the two that have a slot
    for late, want in reversed(list(zip(pending, expected, strict=True))):
        assert_same(late.result(), want)
        assert late.result() is late.result()


def test_a_row_that_ended_wastes_one_step_and_its_blocks_come_back_after_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 1 ends at step 2, which the host learns when step 3 is on its way already."""
    newcomer = AdmittedRow(1, tuple(IDS[4:19]), 15, 0, PENALISED, 0, 0, ((4, 3),))  # row 1's blocks
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
    assert_as_on_cpu(folder, monkeypatch, plans)


def test_a_row_that_was_not_finite_gives_no_token_and_spoils_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [prompts([GREEDY, GREEDY]), decode(2, [0, 1]), decode(3, [0, 1]), decode(4, [0])]
    expected = on_cpu(folder, plans)
    built = build(folder, monkeypatch)
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


def test_a_resumed_row_counts_what_it_had_generated_and_draws_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [prompts([GREEDY, PENALISED]), *(decode(i, [0, 1]) for i in range(2, 8))]
    known = [*IDS[:16]]
    for result in on_cpu(folder, first):
        known += result.rows[1].token_ids
    resumed = AdmittedRow(1, tuple(known), 16, 0, PENALISED, 0, 0, ((9, 7, 8),))
    plans = [
        *first,
        decode(8, [0], released=(1,)),
        replace(
            decode(9, [0], admitted=(resumed,)),
            rows=(PlannedRow(1, len(known), samples=True), PlannedRow(0, 1, samples=True)),
        ),
        *(decode(i, [0, 1]) for i in range(10, 16)),
    ]
    assert_as_on_cpu(folder, monkeypatch, plans)


def test_a_moved_row_takes_everything_along(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [
        prompts([GREEDY, PENALISED, GREEDY]),
        decode(2, [0, 1, 2]),
        decode(3, [5, 0], released=(2,), row_moves=((1, 5),)),
        decode(4, [1, 0], row_moves=((5, 1),)),
        *(decode(i, [1, 0]) for i in range(5, 10)),
    ]
    assert_as_on_cpu(folder, monkeypatch, plans)


def test_a_fork_copies_its_partial_block_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 1 goes on from row 0's prompt: block 2 is shared, block 1 copied to 5."""
    whole = stepping.admitted(IDS, PENALISED, (2, 1))
    fork = AdmittedRow(1, tuple(IDS), len(IDS), len(IDS) - 1, PENALISED, 1, 0, ((2, 5),))
    plans = [
        StepPlan(1, rows=(PlannedRow(0, len(IDS), samples=True),), admitted=(whole,)),
        decode(2, [0, 1], admitted=(fork,), block_copies=((1, 5),)),
        *(decode(i, [0, 1]) for i in range(3, 10)),
    ]
    assert_as_on_cpu(folder, monkeypatch, plans)


def test_a_row_grows_into_new_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = stepping.admitted(IDS[:15], GREEDY, (7,))
    plans = [
        StepPlan(1, rows=(PlannedRow(0, 15, samples=True),), admitted=(row,)),
        decode(2, [0]),
        StepPlan(3, rows=(PlannedRow(0, 1, new_block_ids=((3, 9),), samples=True),)),
        *(decode(i, [0]) for i in range(4, 30)),
    ]
    assert_as_on_cpu(folder, monkeypatch, plans)


def test_a_packet_longer_than_its_buffer_goes_up_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    biased = replace(GREEDY, logit_bias=tuple((i, i / 50) for i in range(100)))
    plans = [
        prompts([biased, PENALISED]),
        *(decode(i, [0, 1]) for i in range(2, 6)),
    ]
    monkeypatch.setattr(gpu_layout, "packet_words", lambda config: 144)
    built = assert_as_on_cpu(folder, monkeypatch, plans)
    assert built.layout.buffer("packet").shape == (144,)
    assert built.runner.step.table.words <= 144


# -- logits and log-probabilities ----------------------------------------------------------------


@pytest.mark.parametrize("logit_rows", [1, 2, 3, 512])
def test_any_bound_on_rows_of_logits_gives_the_same_answers(
    logit_rows: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert_as_on_cpu(folder, monkeypatch, plans, max_logit_rows=logit_rows)


# -- what is refused -----------------------------------------------------------------------------


def test_what_is_not_served_is_refused_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = build(folder, monkeypatch).runner
    plan = prompts([GREEDY])
    with pytest.raises(ValueError, match="draft tokens"):
        runner.forward(replace(plan, rows=(replace(plan.rows[0], draft_token_ids=(3,)),)))
    with pytest.raises(ValueError, match="adapter slot 1"):
        runner.forward(replace(plan, admitted=(replace(plan.admitted[0], adapter_slot=1),)))
    handle = runner.forward(plan)
    with pytest.raises(ValueError, match="grammar masks"):
        runner.sample(handle, {0: b""})
    with pytest.raises(ValueError, match="no forward pass"):
        runner.sample(object(), None)
    runner.forward(StepPlan(2, released=(0,)))
    with pytest.raises(ValueError, match="step 1 is sampled after a later step"):
        runner.sample(handle, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PlannedRow(0, 2), "row 0 knows 16 tokens"),
        (PlannedRow(1, 1), "row 1 knows 0 tokens"),
        (PlannedRow(0, 1, new_block_ids=(tuple(range(20)),)), "row 0 would have 23 blocks"),
    ],
)
def test_tokens_and_slots_that_a_row_does_not_have_are_refused(
    row: PlannedRow, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = build(folder, monkeypatch).runner
    start(runner, prompts([GREEDY]))  # in flight, its token counted on
    with pytest.raises(ValueError, match=message):
        runner.forward(StepPlan(2, rows=(row,)))


def test_a_token_is_not_chosen_before_the_context_is_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = build(folder, monkeypatch).runner
    plan = prompts([GREEDY])
    with pytest.raises(ValueError, match="before its last one is computed"):
        runner.forward(replace(plan, rows=(PlannedRow(0, 7, samples=True),)))


def test_too_many_blocks_for_a_row_and_slots_too_few_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = build(folder, monkeypatch).runner
    plan = prompts([GREEDY])
    tables = (tuple(range(17)),)
    with pytest.raises(ValueError, match="17 blocks; it holds 256 and 16"):
        runner.forward(replace(plan, admitted=(replace(plan.admitted[0], block_tables=tables),)))
    short = replace(plan.admitted[0], token_ids=tuple(IDS), block_tables=((1,),))
    with pytest.raises(ValueError, match="row 0 has 1 blocks"):
        runner.forward(StepPlan(1, rows=(PlannedRow(0, len(IDS)),), admitted=(short,)))


def test_a_step_that_raised_is_told_by_its_result_and_the_rows_can_be_rebuilt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [prompts([GREEDY, PENALISED]), decode(2, [0, 1])]
    expected = on_cpu(folder, plans)
    built = build(folder, monkeypatch)

    def fail(*args: object) -> None:
        raise RuntimeError("the device is unwell")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built.runner.step, "forward", fail)
        pending = start(built.runner, plans[0])
        with pytest.raises(RuntimeError, match="unwell"):
            pending.result()
    built.device.queue[built.device.done :] = []  # what was behind it
    again = replace(plans[0], released=(0, 1))
    assert_same(stepping.step(built.runner, again), expected[0])
    assert_same(stepping.step(built.runner, plans[1]), expected[1])


# -- memory --------------------------------------------------------------------------------------

SPECS = {
    "llama": tiny_llama(vocab_size=3000, hidden_size=64, intermediate_size=256, num_layers=2),
    "gpt2": tiny_gpt2(vocab_size=5000, hidden_size=128),
}


@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("name", SPECS)
def test_the_largest_step_stays_within_the_plan(
    name: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(SPECS[name], tmp_path, seed=1, format=format)
    sizes = {"num_blocks": 256, "max_num_seqs": 16, "max_num_batched_tokens": 2048}
    built = gpu_runners.build(
        tmp_path, monkeypatch, format=format, max_logit_rows=64, max_model_len=256, **sizes
    )
    measured = warm_up(built.runner)
    planned = built.layout.bytes(MemoryKind.ACTIVATIONS)
    assert measured <= planned
    assert planned - measured <= 0.1 * planned
    listed = {nbytes for phase in built.layout.phases for _, nbytes in phase.tensors}
    with LiveBytes(record_above=1 << 20) as step:
        stepping.step(built.runner, largest_plan(built.layout.config))
    assert step.made
    assert {nbytes for nbytes in step.made if nbytes not in listed} == set()
    assert 0 < built.layout.bytes(MemoryKind.GRAPHS) < planned


def test_pinned_memory_is_that_of_the_layout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(folder, monkeypatch)
    assert built.runner.slots.nbytes == built.layout.pinned_bytes > 0
    on_device = {buffer.name for buffer in built.layout.buffers}
    assert {"row_state", "packet", "logits", "kv_cache", "rotary_table"} <= on_device


def test_rows_that_cannot_be_numbered_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.execution import gpu_runner

    monkeypatch.setattr(gpu_runner, "_MOST_WORDS", 1000)
    with pytest.raises(ValueError, match="max_num_seqs 8 times max_model_len 256 is too much"):
        build(folder, monkeypatch)


# -- before the first request --------------------------------------------------------------------


def test_serving_asks_the_sampler_for_nothing_that_the_warm_up_did_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel is compiled for each combination of what is given, and each width of a report."""
    built = build(folder, monkeypatch, max_num_seqs=16, num_blocks=256)
    asked: set[tuple[object, ...]] = set()
    sample, report = kernels.sample, kernels.token_logprobs

    def sampled(logits: torch.Tensor, params: kernels.SamplingTensors) -> object:
        names = kernels.SamplingTensors.__slots__
        asked.add(tuple(name for name in names if getattr(params, name) is not None))
        return sample(logits, params)

    def reported(logits: torch.Tensor, ids: torch.Tensor, num_top: int) -> object:
        asked.add((num_top,))
        return report(logits, ids, num_top)

    monkeypatch.setattr(kernels, "sample", sampled)
    monkeypatch.setattr(kernels, "token_logprobs", reported)
    warm_up(built.runner)
    warmed = set(asked)
    assert len(warmed) == 18 + 3
    for requests in (workloads.mixed(), workloads.growing(), workloads.several_choices()):
        harness.run(built, requests, budget=64)  # type: ignore[arg-type]
    assert asked == warmed


def test_the_warm_up_meets_every_size_that_decode_steps_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(folder, monkeypatch, max_num_seqs=40, num_blocks=256)
    rows: set[int] = set()
    real = built.runner.forward_layers

    def forward(plan: StepPlan, num_layers: int | None) -> object:
        rows.add(len(plan.rows))
        return real(plan, num_layers)

    monkeypatch.setattr(built.runner, "forward_layers", forward)
    warm_up(built.runner)
    assert {*built.runner.graphs.sizes, 40} <= rows


# -- the fake itself -----------------------------------------------------------------------------


@contextmanager
def _no_tensor_operation() -> Iterator[None]:
    class Refusing(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def __torch_dispatch__(self, func: Any, *args: Any) -> Any:
            name = func.__name__.partition(".")[0]
            if name != "slice":  # of pinned memory: a view, no work
                raise AssertionError(f"{name} runs on the host")
            return func(*args[1], **(args[2] if len(args) > 2 else {}))

    with Refusing():
        yield


def test_the_fake_notices_what_a_device_would_wait_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(folder, monkeypatch)
    counts = built.runner.step._buffers["output_counts"]
    cell = counts[0, 0]
    for waits in (
        cell.item,
        counts.nonzero,
        cell.cpu,
        lambda: torch.tensor([1]),
        lambda: int(cell),
    ):
        built.device.run(waits)
        with pytest.raises(NotEnqueued):
            built.device.synchronize()
    with pytest.raises(NotEnqueued, match="behind the device's back"):
        kernels.linear(torch.zeros(1, 64), built.runner.decoder.unembedding)

"""Before the first request: every kernel that serving can need is compiled and has run once.

A kernel is compiled when a configuration of it first runs, which takes up to seconds; a request
must not pay for that. Configurations differ by sizes that the tuning table tells apart and by what
rows ask of the sampler, so steps of rising sizes run through one layer, each with the sampler in
another mood. Compiled kernels are kept on disk, so a later start only reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from server.engine.plan import AdmittedRow, PlannedRow, StepPlan
from server.engine.request import SamplingParams
from server.execution.cuda_graphs import GraphMode
from server.execution.gpu_runner import GpuRunner
from server.execution.warm_up import largest_plan
from server.memory.layout import RunnerConfig

GREEDY = SamplingParams(seed=0, temperature=0.0)
DRAWN = SamplingParams(seed=0)


def warm_up(runner: GpuRunner) -> int:
    """Runs the largest step, then smaller ones; leaves no row behind.

    Captures all decode sizes where the runner's mode says so. Returns the bytes of intermediates
    that the largest step had alive at once.
    """
    config = runner.layout.config
    for plan in (largest_plan(config), *_plans(config)):
        runner.sample(runner.forward_layers(plan, 1), None).result()
        runner.forward(StepPlan(plan.step_id, released=tuple(row.row for row in plan.rows)))
    if runner.graphs.mode is GraphMode.START:
        runner.graphs.capture_all()
    runner.device.synchronize()
    return runner.step.peak.peak_bytes


def _plans(config: RunnerConfig) -> Iterator[StepPlan]:
    """One prompt of 1, 2, 4 ... tokens, then as many rows of one token."""
    longest = min(
        config.max_num_batched_tokens,
        config.max_model_len - 1,
        config.num_blocks * config.block_size,
    )
    moods = _moods(config.max_logprobs)
    for length in _doubling(longest):
        yield _plan([length], next(moods), config)
    for rows in _doubling(min(config.max_num_seqs, config.num_blocks, longest)):
        yield _plan([1] * rows, next(moods), config)


def _doubling(most: int) -> Iterator[int]:
    size = 1
    while size < most:
        yield size
        size *= 2
    if most > 0:
        yield most


def _moods(max_logprobs: int) -> Iterator[SamplingParams]:
    """What rows ask of the sampler, each feature alone, round and round."""
    moods = (
        GREEDY,
        DRAWN,
        replace(DRAWN, top_k=5),
        replace(DRAWN, top_p=0.9),
        replace(DRAWN, min_p=0.1),
        replace(DRAWN, top_k=5, top_p=0.9),
        replace(GREEDY, frequency_penalty=0.1),
        replace(GREEDY, presence_penalty=0.1),
        replace(DRAWN, repetition_penalty=1.1),
        replace(GREEDY, logit_bias=((0, 1.0),)),
        replace(GREEDY, logprobs=min(1, max_logprobs)),
        replace(GREEDY, logprobs=max_logprobs),
    )
    while True:
        yield from moods


def _plan(lengths: list[int], sampling: SamplingParams, config: RunnerConfig) -> StepPlan:
    admitted: list[AdmittedRow] = []
    block = 0
    for row, length in enumerate(lengths):
        blocks = -(-length // config.block_size)
        admitted.append(
            AdmittedRow(
                row=row,
                token_ids=(0,) * length,
                num_prompt_tokens=length,
                num_computed_tokens=0,
                sampling=sampling,
                choice=0,
                adapter_slot=0,
                block_tables=(tuple(range(block, block + blocks)),),
            )
        )
        block += blocks
    rows = tuple(PlannedRow(row, length, samples=True) for row, length in enumerate(lengths))
    return StepPlan(0, rows=rows, admitted=tuple(admitted))

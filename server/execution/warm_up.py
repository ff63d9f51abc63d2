"""Plans for the time before the first request: the largest step that a configuration allows, and
those with which every kernel that serving can need is compiled and has run once.

Where kernels are compiled, one is when a configuration of it first runs, which takes up to seconds;
a request must not pay for that. Configurations differ by sizes that the tuning table tells apart,
so steps of rising sizes run through one layer; and by what rows ask of the sampler, so everything
is asked of it. Compiled kernels are kept on disk, so a later start only reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from server.engine.engine_config import EngineConfig
from server.engine.request import SamplingParams
from server.engine.step_plan import AdmittedRow, PlannedRow, StepPlan, StepResult
from server.memory.graph_sizes import SIZES
from server.memory.runner_buffers import LogitLimits
from server.units import ceil_div

GREEDY = SamplingParams(seed=0, temperature=0.0)
DRAWN = SamplingParams(seed=0)
TRUNCATED = replace(DRAWN, top_p=0.9)


def largest_plan(config: EngineConfig, groups: int = 1, asking: int | None = None) -> StepPlan:
    """As many tokens, rows and rows of logits as fit, with every sampling feature in use.

    A row has a block table in each of ``groups`` of the KV cache. All rows have their prompts
    scored; only the first ``asking`` of them, all by default, choose their token with everything
    that there is, the others the likeliest.
    """
    cache, sizes = config.cache, config.scheduler
    blocks = cache.num_blocks // groups
    blocks_per_row = max(1, blocks // sizes.max_num_seqs)
    rows = min(sizes.max_num_seqs, blocks, sizes.logit_rows)
    tokens = min(
        sizes.max_num_batched_tokens // rows,
        blocks_per_row * cache.block_size,
        max(1, sizes.max_model_len - 1),
    )
    scored = min(tokens - 1, sizes.logit_rows // rows)
    num_blocks = ceil_div(tokens, cache.block_size)
    everything = _everything(sizes.max_logprobs)
    scored_only = replace(GREEDY, prompt_logprobs=everything.prompt_logprobs)
    admitted = tuple(
        AdmittedRow(
            row=row,
            token_ids=(0,) * tokens,
            num_prompt_tokens=tokens,
            num_computed_tokens=0,
            sampling=everything if asking is None or row < asking else scored_only,
            choice=0,
            block_tables=_tables(row * num_blocks * groups, num_blocks, groups),
        )
        for row in range(rows)
    )
    planned = tuple(
        PlannedRow(
            row=row,
            num_scheduled_tokens=tokens,
            samples=tokens < sizes.max_model_len,
            num_prompt_logits=scored,
        )
        for row in range(rows)
    )
    return StepPlan(step_id=0, rows=planned, admitted=admitted)


def further_parts(
    largest: StepPlan, config: EngineConfig, limits: LogitLimits, groups: int = 1
) -> tuple[int, StepPlan | None]:
    """How many parts the sampling of the largest step has after its first one, where all rows ask
    for everything; and a step that is one such part and no more, None where there are none."""
    size, total = limits.penalised_rows, sum(row.samples for row in largest.rows)
    more = sum(ceil_div(last - first, size) for first, last in limits.spans(total)) - 1
    if more < 1:
        return 0, None
    return more, _plan([1] * size, _everything(config.scheduler.max_logprobs), config, groups)


def step_seconds(measured: StepResult, times: float) -> float:
    """What a step takes through all layers, which are so many times those that ran."""
    return times * measured.forward_seconds + measured.sample_seconds


def kernel_plans(config: EngineConfig, limits: LogitLimits, groups: int = 1) -> Iterator[StepPlan]:
    """One prompt of every size, as many rows of one token, and a row for everything to ask for."""
    blocks = config.cache.num_blocks // groups
    longest = min(
        config.scheduler.max_num_batched_tokens,
        config.scheduler.max_model_len - 1,
        blocks * config.cache.block_size,
    )
    for length in _sizes(longest):
        yield _plan([length], GREEDY, config, groups)
    for rows in _sizes(min(config.scheduler.max_num_seqs, blocks, longest)):
        yield _plan([1] * rows, DRAWN, config, groups)
    if longest > 0:
        for sampling, pending in _everything_asked(limits):
            yield _plan([1], sampling, config, groups, min_tokens_pending=pending)


def copy_plans(config: EngineConfig) -> Iterator[StepPlan]:
    """Copies of 1, 2, 4, ... blocks, as many as all rows can fork: they hold nothing yet."""
    count = 1
    while count <= min(config.scheduler.max_num_seqs, config.cache.num_blocks // 2):
        pairs = tuple((2 * index, 2 * index + 1) for index in range(count))
        yield StepPlan(0, block_copies=pairs)
        count *= 2


def _sizes(most: int) -> Iterator[int]:
    """Those that decode steps are captured at, then twice as many each time, up to ``most``."""
    size = 0
    while size < most:
        size = min(most, next((one for one in SIZES if one > size), 2 * size))
        yield size


def _tables(first: int, blocks: int, groups: int) -> tuple[tuple[int, ...], ...]:
    """So many blocks for each group, from ``first`` on, none of them twice."""
    starts = range(first, first + blocks * groups, blocks) if blocks else (first,) * groups
    return tuple(tuple(range(start, start + blocks)) for start in starts)


def _everything_asked(limits: LogitLimits) -> Iterator[tuple[SamplingParams, bool]]:
    """Every combination that the sampler tells apart, with whether end ids are forbidden."""
    for drawing in (GREEDY, DRAWN, TRUNCATED):
        for penalised in (drawing, replace(drawing, repetition_penalty=1.1)):
            for sampling in (penalised, replace(penalised, logit_bias=((0, 1.0),))):
                yield sampling, False
            yield replace(penalised, stop_token_ids=(0,)), True
    for number in limits.num_tops:
        yield replace(GREEDY, logprobs=number), False


def _plan(
    lengths: list[int],
    sampling: SamplingParams,
    config: EngineConfig,
    groups: int,
    *,
    min_tokens_pending: bool = False,
) -> StepPlan:
    admitted: list[AdmittedRow] = []
    block = 0
    for row, length in enumerate(lengths):
        blocks = ceil_div(length, config.cache.block_size)
        admitted.append(
            AdmittedRow(
                row=row,
                token_ids=(0,) * length,
                num_prompt_tokens=length,
                num_computed_tokens=0,
                sampling=sampling,
                choice=0,
                block_tables=_tables(block, blocks, groups),
            )
        )
        block += blocks * groups
    rows = tuple(
        PlannedRow(row, length, samples=True, min_tokens_pending=min_tokens_pending)
        for row, length in enumerate(lengths)
    )
    return StepPlan(0, rows=rows, admitted=tuple(admitted))


def _everything(max_logprobs: int) -> SamplingParams:
    # A temperature at which all tokens stay candidates: what truncation and the draw hold is most.
    return SamplingParams(
        seed=0,
        temperature=1e3,
        top_p=0.999,
        min_p=1e-9,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        repetition_penalty=1.1,
        logprobs=max_logprobs,
        prompt_logprobs=max_logprobs,
    )

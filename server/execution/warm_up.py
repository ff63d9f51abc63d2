"""The largest step that a configuration allows, as a plan, and how long it takes."""

from __future__ import annotations

from server.engine.request import SamplingParams
from server.engine.step_plan import AdmittedRow, PlannedRow, StepPlan, StepResult
from server.memory.runner_config import RunnerConfig


def largest_plan(config: RunnerConfig) -> StepPlan:
    """As many tokens, rows and rows of logits as fit, with every sampling feature in use."""
    blocks_per_row = max(1, config.num_blocks // config.max_num_seqs)
    rows = min(config.max_num_seqs, config.num_blocks, config.logit_rows)
    tokens = min(
        config.max_num_batched_tokens // rows,
        blocks_per_row * config.block_size,
        max(1, config.max_model_len - 1),
    )
    scored = min(tokens - 1, config.logit_rows // rows)
    num_blocks = -(-tokens // config.block_size)
    admitted = tuple(
        AdmittedRow(
            row=row,
            token_ids=(0,) * tokens,
            num_prompt_tokens=tokens,
            num_computed_tokens=0,
            sampling=_everything(config.max_logprobs),
            choice=0,
            block_tables=(tuple(range(row * num_blocks, (row + 1) * num_blocks)),),
        )
        for row in range(rows)
    )
    planned = tuple(
        PlannedRow(
            row=row,
            num_scheduled_tokens=tokens,
            samples=tokens < config.max_model_len,
            num_prompt_logits=scored,
        )
        for row in range(rows)
    )
    return StepPlan(step_id=0, rows=planned, admitted=admitted)


def step_seconds(one_layer: StepResult, num_layers: int) -> float:
    """What a step takes through all layers, by a run of it through one."""
    return num_layers * one_layer.forward_seconds + one_layer.sample_seconds


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

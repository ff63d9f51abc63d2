"""Drives a ModelRunner by hand: a row, a prompt, greedy tokens, or the logits of every position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from kernels.dispatch import using
from server.engine.request import SamplingParams
from server.engine.step_plan import AdmittedRow, LogprobArrays, PlannedRow, StepPlan, StepResult
from server.execution.build import BuiltRunner, build_runner
from server.execution.model_runner import Forwarded, ModelRunner
from tests.engine_configs import engine_config
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import write_checkpoint


def unpack_logprobs(
    arrays: LogprobArrays,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Ids and nats, each [num_positions, width]."""
    shape = (arrays.num_positions, arrays.width)
    ids = np.frombuffer(arrays.token_ids, dtype="<i4").reshape(shape)
    return ids, np.frombuffer(arrays.logprobs, dtype="<f4").reshape(shape)


def built(folder: Path, *, poison: bool = True, **changes: object) -> BuiltRunner:
    return build_runner(folder, engine_config(**changes), poison=poison, warm_up=False)


def built_from_spec(spec: ModelSpec, folder: Path, seed: int = 0, **changes: object) -> BuiltRunner:
    write_checkpoint(spec, folder, seed=seed)
    return built(folder, **({"max_model_len": spec.max_positions} | changes))


def blocks_for(tokens: int, block_size: int, *, first: int = 0) -> tuple[int, ...]:
    """Block ids in an order that is not rising, so that a table is really read."""
    count = -(-tokens // block_size)
    return tuple(reversed(range(first, first + count)))


def admitted(
    ids: list[int],
    sampling: SamplingParams,
    blocks: tuple[int, ...],
    *,
    row: int = 0,
    groups: int = 1,
) -> AdmittedRow:
    """Each further group of the KV cache has as many blocks of its own, behind the first's."""
    tables = tuple(tuple(len(blocks) * group + one for one in blocks) for group in range(groups))
    return AdmittedRow(
        row=row,
        token_ids=tuple(ids),
        num_prompt_tokens=len(ids),
        num_computed_tokens=0,
        sampling=sampling,
        choice=0,
        block_tables=tables,
    )


def step(runner: ModelRunner, plan: StepPlan) -> StepResult:
    return runner.sample(runner.forward(plan), None).result()


def greedy(runner: ModelRunner, ids: list[int], num_tokens: int) -> list[int]:
    """``num_tokens`` greedy tokens after the prompt, one step each."""
    sampling = SamplingParams(seed=0, temperature=0.0, max_tokens=num_tokens)
    blocks = blocks_for(len(ids) + num_tokens, runner.layout.config.cache.block_size)
    plan = StepPlan(
        1,
        rows=(PlannedRow(0, len(ids), samples=True),),
        admitted=(admitted(ids, sampling, blocks, groups=runner.rows.layout.groups),),
    )
    tokens = list(step(runner, plan).rows[0].token_ids)
    decode = StepPlan(2, rows=(PlannedRow(0, 1, samples=True),))
    while len(tokens) < num_tokens:
        tokens += step(runner, decode).rows[0].token_ids
    runner.forward(StepPlan(3, released=(0,)))
    return tokens


def prompt_logprobs(runner: ModelRunner, ids: list[int], num_top: int) -> np.ndarray:
    """[len(ids) - 1, 1 + num_top] nats, as echo with logprobs reports them."""
    sampling = SamplingParams(seed=0, max_tokens=0, prompt_logprobs=num_top)
    blocks = blocks_for(len(ids), runner.layout.config.cache.block_size)
    plan = StepPlan(
        1,
        rows=(PlannedRow(0, len(ids), num_prompt_logits=len(ids) - 1),),
        admitted=(admitted(ids, sampling, blocks, groups=runner.rows.layout.groups),),
    )
    arrays = step(runner, plan).rows[0].prompt_logprobs
    runner.forward(StepPlan(2, released=(0,)))
    if arrays is None:
        raise AssertionError("no prompt log-probabilities came")
    return unpack_logprobs(arrays)[1]


@torch.inference_mode()
def all_logits(runner: ModelRunner, ids: list[int]) -> torch.Tensor:
    """[len(ids), V] float32 logits of one row's prompt."""
    blocks = blocks_for(len(ids), runner.layout.config.cache.block_size)
    row = admitted(ids, SamplingParams(seed=0), blocks, groups=runner.rows.layout.groups)
    planned = PlannedRow(0, len(ids), samples=True, num_prompt_logits=len(ids) - 1)
    handle = runner.forward(StepPlan(1, rows=(planned,), admitted=(row,)))
    if not isinstance(handle, Forwarded) or handle.tensors.hidden is None:
        raise AssertionError("the step kept no hidden states")
    hidden = handle.tensors.hidden
    runner.forward(StepPlan(2, released=(0,)))
    with using(runner.kernels):
        return runner.decoder.logits(hidden)

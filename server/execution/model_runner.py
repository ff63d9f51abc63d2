"""Runs step plans: rows in, forward pass, tokens out. The engine's Executor on one device.

    plan -> rows released, blocks copied, rows admitted and extended   (InputBatch, KVCache)
         -> one forward pass over all scheduled tokens                        (Decoder)
         -> the positions whose logits are asked for, through the final norm  (Picks)
         -> tokens and log-probabilities, a bounded number of rows at a time  (Sampler)

On a CPU the forward pass is done when ``forward`` returns; the four-call seam of the Executor
stays, so that a device that runs by itself fits the same engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

import kernels
from kernels.dispatch import using
from server.engine.request import SamplingParams
from server.engine.step_plan import (
    ForwardHandle,
    PendingResult,
    RowResult,
    StepPlan,
    StepResult,
)
from server.execution.cuda_graphs import GraphMode
from server.execution.device import Device
from server.execution.input_batch import InputBatch, StepInputs
from server.execution.kv_cache import KVCache
from server.execution.live_bytes import PeakMeter, storage_bytes
from server.execution.model import Decoder, StepTensors
from server.execution.out_of_memory import attribute_oom
from server.execution.row_results import row_result
from server.execution.sampler import Sampled, Sampler, SampleWork, Scored
from server.execution.warm_up import largest_plan, step_seconds
from server.memory.backends.registry import backend_named
from server.memory.intermediates import sample_rows
from server.memory.layout import Layout
from server.memory.runner_config import attention_shape

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Picks:
    """Which tokens of a step need logits, as indices into its T tokens.

    ``scored`` are prompt positions whose following token's log-probability was asked for, all of a
    row's together; ``sampled`` the last token of each row that chooses a new one.
    """

    scored: Int64  # [P]
    scored_for: Int64  # [P] the row that asked
    targets: Int64  # [P] the prompt token that follows each
    sampled: Int64  # [S]

    @property
    def rows(self) -> Int64:
        return np.concatenate((self.scored, self.sampled))


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A forward pass that is done, up to the final norm: ``hidden`` [P + S, D]."""

    plan: StepPlan
    picks: Picks
    hidden: torch.Tensor
    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """A result that needs no waiting for."""

    value: StepResult

    def result(self) -> StepResult:
        return self.value


class ModelRunner:
    """Holds a decoder, its rows and its cache, all in the buffers of one layout.

    ``eos_token_ids`` are what min_tokens forbids beside a request's own stop ids. ``poison`` fills
    blocks with NaN when they are handed out (tests).
    """

    def __init__(
        self,
        decoder: Decoder,
        layout: Layout,
        buffers: Mapping[str, torch.Tensor],
        eos_token_ids: tuple[int, ...],
        device: Device,
        *,
        graphs: GraphMode = GraphMode.OFF,
        poison: bool = False,
    ) -> None:
        self.layout = layout
        self.decoder = decoder
        self.cache = KVCache(buffers["kv_cache"], poison=poison)
        self.batch = InputBatch(
            buffers, block_size=layout.config.block_size, vocab_size=decoder.spec.vocab_size
        )
        self.peak = PeakMeter(device.peak_meter)
        self.largest_step_seconds = 0.0  # before the warm-up
        self.workspace = kernels.AttentionWorkspace(attention_shape(decoder.spec, layout.config))
        self.workspace.buffer.zero_()  # resident from the start
        self._eos_token_ids = eos_token_ids
        self._kernels = backend_named(layout.config.backend).kernels
        self._sampler = Sampler(
            decoder.logits,
            self.batch.sampling,
            logit_rows=layout.config.logit_rows,
            sample_rows=sample_rows(decoder.spec.vocab_size),
        )

    @property
    def overlaps(self) -> bool:
        """On a CPU a step is done when ``forward`` and ``sample`` return."""
        return False

    @property
    def pinned_bytes(self) -> int:
        """Nothing is copied from or to a device."""
        return 0

    def around_capture(self, watch: Callable[[], AbstractContextManager[None]]) -> None:
        """Nothing is captured."""

    def warm_up(self) -> int:
        """Measures the intermediates of the largest step, before the first request: bytes.

        Runs one layer and the sampler with everything switched on; leaves no row behind. What all
        layers take follows from it: ``largest_step_seconds``.
        """
        plan = largest_plan(self.layout.config)
        with using(self._kernels):
            handle = self.forward_layers(plan, 1)
        result = self.sample(handle, None).result()
        self.largest_step_seconds = step_seconds(result, self.decoder.spec.num_layers)
        self.forward(StepPlan(plan.step_id, released=tuple(row.row for row in plan.rows)))
        return self.peak.peak_bytes

    def forward(self, plan: StepPlan) -> Forwarded:
        """Applies the plan to rows and cache, and runs the model over its tokens.

        Raises:
            ValueError: the plan asks for tokens or slots that a row does not have, or for a
                feature that this runner does not serve.
            StepOutOfMemory: an allocation failed.
        """
        with using(self._kernels), attribute_oom(row.row for row in plan.rows):
            return self.forward_layers(plan, None)

    @torch.inference_mode()
    def forward_layers(self, plan: StepPlan, num_layers: int | None) -> Forwarded:
        """As ``forward``, through the first ``num_layers`` layers only (to measure by)."""
        started = perf_counter()
        self._apply(plan)
        if not plan.rows:
            empty = np.zeros(0, dtype=np.int64)
            nothing = self.decoder.embedding.new_empty(0, self.decoder.spec.hidden_size)
            picks = Picks(empty, empty, empty, empty)
            return Forwarded(plan, picks, nothing, perf_counter() - started)
        inputs = self.batch.step_inputs(plan.rows)
        picks = self._picks(plan, inputs)
        with self.peak.watch(plan.num_tokens, 0):
            hidden = self._hidden(inputs, picks, num_layers)
        return Forwarded(plan, picks, hidden, perf_counter() - started)

    @torch.inference_mode()
    def sample(self, handle: ForwardHandle, masks: dict[int, bytes] | None) -> PendingResult:
        """Chooses tokens and scores prompt positions of a forward pass.

        Raises:
            ValueError: the handle is not this runner's, or grammar masks are given.
            StepOutOfMemory: an allocation failed.
        """
        if not isinstance(handle, Forwarded):
            raise ValueError(f"{type(handle).__name__} is no forward pass of this runner")
        if masks:
            raise ValueError("grammar masks are not served by this runner")
        started = perf_counter()
        picks, plan = handle.picks, handle.plan
        logit_rows = min(len(picks.rows), self.layout.config.logit_rows)
        with using(self._kernels), attribute_oom(row.row for row in plan.rows):
            with self.peak.watch(0, logit_rows, storage_bytes(handle.hidden)):
                scored = self._score(handle)
                sampled = self._choose(handle)
            results = self._results(plan, scored, sampled)
        return Done(
            StepResult(
                step_id=plan.step_id,
                rows=results,
                forward_seconds=handle.seconds,
                sample_seconds=perf_counter() - started,
                peak_activation_bytes=self.peak.peak_bytes,
            )
        )

    def _apply(self, plan: StepPlan) -> None:
        block_size = self.cache.block_size
        new: list[int] = []
        for admitted in plan.admitted:
            new += admitted.block_tables[0][-(-admitted.num_computed_tokens // block_size) :]
        for row in plan.rows:
            new += row.new_block_ids[0] if row.new_block_ids else ()
        self.cache.copy(plan.block_copies)
        self.cache.hand_out(new)
        self.batch.apply(plan)

    def _picks(self, plan: StepPlan, inputs: StepInputs) -> Picks:
        starts = inputs.query_start_loc
        scored = [
            np.arange(start, start + row.num_prompt_logits)
            for start, row in zip(starts.tolist(), plan.rows, strict=False)
            if row.num_prompt_logits
        ]
        samples = np.array([row.samples for row in plan.rows], dtype=np.bool_)
        sampled = starts[1:][samples].astype(np.int64) - 1
        if not scored:
            none = np.zeros(0, dtype=np.int64)
            return Picks(none, none, none, sampled)
        tokens = np.concatenate(scored)
        row_of_token = inputs.rows[np.searchsorted(starts, tokens, side="right") - 1]
        targets = self.batch.token_ids[row_of_token, inputs.positions[tokens] + 1]
        return Picks(tokens, row_of_token, targets.astype(np.int64), sampled)

    def _hidden(self, inputs: StepInputs, picks: Picks, num_layers: int | None) -> torch.Tensor:
        x, residual = self.decoder.forward(self._step_tensors(inputs), num_layers)
        return self.decoder.pick(x, residual, torch.from_numpy(picks.rows))

    def _step_tensors(self, inputs: StepInputs) -> StepTensors:
        positions = torch.from_numpy(inputs.positions)
        slot_mapping = torch.from_numpy(inputs.slot_mapping)
        return StepTensors(
            token_ids=torch.from_numpy(inputs.token_ids),
            positions=positions,
            slot_mapping=slot_mapping,
            cache=self.cache.tensor,
            metadata=kernels.prepare_attention(
                query_start_loc=torch.from_numpy(inputs.query_start_loc),
                seq_lens=torch.from_numpy(inputs.seq_lens),
                block_tables=torch.from_numpy(inputs.block_tables),
                slot_mapping=slot_mapping,
                positions=positions,
                shape=self.workspace.shape,
            ),
            workspace=self.workspace,
        )

    def _score(self, handle: Forwarded) -> Scored:
        num_top = max(
            (
                self._params(row.row).prompt_logprobs or 0
                for row in handle.plan.rows
                if row.num_prompt_logits
            ),
            default=0,
        )
        hidden = handle.hidden[: len(handle.picks.scored)]
        picks = handle.picks
        return self._sampler.score(hidden, picks.targets, picks.scored_for, num_top)

    def _choose(self, handle: Forwarded) -> Sampled:
        planned = [row for row in handle.plan.rows if row.samples]
        rows = np.array([row.row for row in planned], dtype=np.int64)
        work = SampleWork(
            rows=rows,
            output_positions=self.batch.num_tokens[rows] - self.batch.num_prompt[rows],
            forbidden=[
                (*self._eos_token_ids, *self._params(row.row).stop_token_ids)
                if row.min_tokens_pending
                else ()
                for row in planned
            ],
            num_top=[self._params(row.row).logprobs for row in planned],
        )
        return self._sampler.sample(handle.hidden[len(handle.picks.scored) :], work)

    def _params(self, row: int) -> SamplingParams:
        params = self.batch.sampling.params[row]
        if params is None:
            raise ValueError(f"row {row} holds no sequence")
        return params

    def _results(self, plan: StepPlan, scored: Scored, sampled: Sampled) -> tuple[RowResult, ...]:
        """Reads results out in the order of the plan, and gives each row its new token."""
        results: list[RowResult] = []
        position = choice = 0
        for planned in plan.rows:
            positions = slice(position, position + planned.num_prompt_logits)
            with attribute_oom((planned.row,)):
                params = self._params(planned.row)
                result = row_result(planned, params, scored, positions, sampled, choice)
                for token_id in result.token_ids:
                    self.batch.append(planned.row, token_id)
            results.append(result)
            position = positions.stop
            choice += planned.samples
        return tuple(results)

"""Runs step plans: rows in, forward pass, tokens out. The engine's Executor on one device.

    plan -> what changes about rows, and which take part, as one packet   (Rows, PacketDraft)
         -> rows and cache blocks changed on the device                   (DeviceStep.change)
         -> one forward pass, captured for decode steps on a GPU          (DeviceStep, DecodeGraphs)
         -> tokens and log-probabilities, into the rows and to the host   (DeviceStep.sample)

``forward`` and ``sample`` hand work over to the device and return. A CPU does it there and then; a
GPU does it while the host goes on. The token that a row chose is written into the row on the
device, where the next step reads it, so that step can be planned and handed over before the host
has seen the token: a plan tells places and lengths, never tokens. ``result`` waits for an event
behind the step and reads what lies in the step's own slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

import kernels
from kernels.dispatch import using
from server.engine.request import SamplingParams, Task
from server.engine.step_plan import ForwardHandle, PendingResult, StepPlan, StepResult
from server.execution.cuda_graphs import DecodeGraphs, GraphMode, Watch
from server.execution.device import Device, Event
from server.execution.live_bytes import PeakMeter
from server.execution.model import Decoder
from server.execution.out_of_memory import attribute_oom
from server.execution.packet import EMPTY, PacketDraft
from server.execution.rows import Feature, RowChanges, Rows, StepRows, features
from server.execution.sampling_batch import SampleWork, plan_sampling
from server.execution.step import BlockChanges, DeviceStep, OnDevice
from server.execution.step_slots import PendingStep, Slots, StepEvents, StepSlot
from server.execution.warm_up import (
    copy_plans,
    further_parts,
    kernel_plans,
    largest_plan,
    step_seconds,
)
from server.memory.backends.registry import backend_named
from server.memory.layout import Layout, decode_graph_sizes
from server.memory.runner_buffers import MOST_ROW_WORDS, row_layout
from server.units import ceil_div


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A forward pass that was handed over. ``params`` are its rows' when it was planned: when the
    result is read a row may belong to another sequence."""

    plan: StepPlan
    rows: StepRows
    params: tuple[SamplingParams, ...]
    work: SampleWork
    slot: StepSlot
    started: Event
    forwarded: Event
    tensors: OnDevice


@dataclass(frozen=True, slots=True)
class RowsChanged:
    """The handle and the result of a plan without rows."""

    step_id: int

    def result(self) -> StepResult:
        return StepResult(self.step_id, ())


class ModelRunner:
    """Holds a decoder, its rows and its cache, all in the buffers of one layout.

    Args:
        layout: of the configuration that the buffers were made for.
        buffers: the layout's, on the device, zeroed.
        eos_token_ids: what min_tokens forbids beside a request's own stop ids.
        graphs: when decode steps are captured.
        around_capture: entered for every capture.
        poison: fill blocks with NaN when they are handed out (tests).

    Raises:
        ValueError: rows times tokens of a context are more than records can number.
    """

    def __init__(
        self,
        decoder: Decoder,
        layout: Layout,
        buffers: Mapping[str, torch.Tensor],
        eos_token_ids: tuple[int, ...],
        device: Device,
        *,
        graphs: GraphMode = GraphMode.LAZY,
        around_capture: Watch = nullcontext,
        poison: bool = False,
    ) -> None:
        config, most = layout.config, layout.config.scheduler
        if buffers["row_state"].numel() > MOST_ROW_WORDS:
            raise ValueError(
                f"max_num_seqs {most.max_num_seqs} times max_model_len {most.max_model_len} is too"
                f" much: all rows hold at most {MOST_ROW_WORDS} numbers"
            )
        self.layout = layout
        self.decoder = decoder
        self.device = device
        self.rows = Rows(
            row_layout(decoder.spec, config),
            max_num_seqs=config.scheduler.max_num_seqs,
            block_size=config.cache.block_size,
        )
        self.slots = Slots(device, layout, buffers)
        self._backend = backend_named(config.model.backend)
        self.kernels = self._backend.parts.kernels  # that its work is done with
        self.limits = self._backend.parts.logit_limits(decoder.spec, config)
        self.step = DeviceStep(decoder, layout, buffers, device, self.limits)
        sizes = decode_graph_sizes(config) if self._backend.captures_graphs else ()
        self.graphs = DecodeGraphs(
            device,
            sizes,
            self.step.decode,
            self.step.forget,
            mode=graphs,
            around_capture=around_capture,
        )
        self.largest_step_seconds = 0.0  # before the warm-up
        self._eos_token_ids = eos_token_ids
        self._poison = poison
        self._last: Forwarded | RowsChanged | None = None
        device.synchronize()  # weights and buffers are there
        device.run(self.step.clear)
        if poison:
            device.run(self.step.cache.poison)
        device.synchronize()

    @property
    def overlaps(self) -> bool:
        """The next step may be handed over before the last result was asked for."""
        return self.device.overlaps

    @property
    def supported_tasks(self) -> frozenset[Task]:
        """What ``sample`` makes of hidden states: tokens and their log-probabilities."""
        return frozenset({Task.GENERATE})

    def max_decode_steps(self, sampling: SamplingParams) -> int:
        """As Executor.max_decode_steps: many where tokens are chosen by logits as they are, by a
        decoder that needs no host for it."""
        changes = features(sampling) & ~(Feature.RANDOM | Feature.TRUNCATES)
        if changes or self.overlaps or self.step.decode_program is None:
            return 1
        return self._backend.max_decode_steps

    @property
    def peak(self) -> PeakMeter:
        return self.step.peak

    @property
    def workspace(self) -> kernels.AttentionWorkspace:
        return self.step.workspace

    @property
    def pinned_bytes(self) -> int:
        return self.slots.pinned_bytes

    def warm_up(self) -> int:
        """Runs the largest step, and where kernels are compiled smaller ones that meet the others;
        leaves no row behind. One layer is enough: all have the same intermediates. So is one part
        of the sampling, where the rows are cut into several: a second one is for the time alone.

        Captures all decode sizes where the mode says so, before anything else: a capture gives back
        what the allocator keeps for later, which is to be the largest step's. Returns the bytes of
        intermediates that the largest step had alive at once; ``largest_step_seconds`` is what that
        step takes.
        """
        if self.graphs.mode is GraphMode.START:
            self.graphs.capture_all()
        config, groups = self.layout.config, self.rows.layout.groups
        compiles, layers = self._backend.compiles_kernels, self.layers_to_measure
        smaller = kernel_plans(config, self.limits, groups) if compiles else ()
        largest = largest_plan(config, groups, asking=self.limits.penalised_rows)
        times = self.decoder.spec.num_layers / layers
        seconds = step_seconds(self._measure(largest, layers), times)
        more, part = further_parts(largest, config, self.limits, groups)
        if part is not None:
            seconds += more * self._measure(part, layers).sample_seconds
        for plan in smaller:
            seconds = max(seconds, step_seconds(self._measure(plan, layers), times))
        self.largest_step_seconds = seconds
        for plan in copy_plans(config) if compiles else ():
            self.forward(plan)
        self.device.synchronize()
        return self.peak.peak_bytes

    def _measure(self, plan: StepPlan, layers: int) -> StepResult:
        """Runs it through the first ``layers`` layers, and releases its rows."""
        result = self.sample(self.forward_layers(plan, layers), None).result()
        self.forward(StepPlan(plan.step_id, released=tuple(row.row for row in plan.rows)))
        return result

    @property
    def layers_to_measure(self) -> int:
        """So many first layers that one of each kind is among them."""
        return 1 + max(self.decoder.spec.kinds_of_layers)

    def forward(self, plan: StepPlan) -> Forwarded | RowsChanged:
        """Applies the plan to rows and cache, and hands over the model's work on its tokens.

        Raises:
            ValueError: the plan asks for tokens or slots that a row does not have, or for a
                feature that this runner does not serve.
            StepOutOfMemory: an allocation failed while the work was handed over.
        """
        return self.forward_layers(plan, None)

    def forward_layers(self, plan: StepPlan, num_layers: int | None) -> Forwarded | RowsChanged:
        """As ``forward``, through the first ``num_layers`` layers only (to measure by)."""
        with using(self.kernels), attribute_oom(row.row for row in plan.rows):
            return self._forward(plan, num_layers)

    def _forward(self, plan: StepPlan, num_layers: int | None) -> Forwarded | RowsChanged:
        packet = PacketDraft(self.step.table)
        blocks = self._block_changes(plan, packet)
        changes = self.rows.apply(plan, packet)
        if not plan.rows:
            if blocks or changes:
                self._hand_over(packet, blocks, changes)
            self._last = RowsChanged(plan.step_id)
            return self._last
        rows = self.rows.step(plan.rows, plan.num_decode_steps)
        params = tuple(self.rows.params_of(row.row) for row in plan.rows)
        packet.set_rows(rows.rows, rows.starts, rows.computed, rows.places, rows.outputs)
        work = plan_sampling(
            plan, self.rows, rows, packet, limits=self.limits, eos_token_ids=self._eos_token_ids
        )
        if plan.num_decode_steps > 1 and (self.step.decode_program is None or not work.is_plain):
            raise ValueError(
                f"step {plan.step_id} gives each row {plan.num_decode_steps} tokens, which this"
                " runner does not do for all of its rows"
            )
        size = self._graph_size(plan) if num_layers is None else None
        # Captured before the packet is uploaded: a capture takes every row out of the batch.
        graph = None if size is None else self.graphs.graph(size)
        started = self.device.record()
        slot, on = self._hand_over(packet, blocks, changes)
        if graph is None:
            self.device.run(lambda: self.step.forward(rows, work, on, num_layers))
        else:
            self.device.replay(graph)
        forwarded = self.device.record()
        self._last = Forwarded(plan, rows, params, work, slot, started, forwarded, on)
        return self._last

    def sample(self, handle: ForwardHandle, masks: dict[int, bytes] | None) -> PendingResult:
        """Hands over the choice of tokens and the scoring of prompts of the last forward pass.

        Raises:
            ValueError: the handle is not this runner's last, grammar masks are given, or a row
                that chooses a token is full.
            StepOutOfMemory: an allocation failed while the work was handed over.
        """
        if not isinstance(handle, Forwarded | RowsChanged):
            raise ValueError(f"{type(handle).__name__} is not a forward pass of this runner")
        if masks:
            raise ValueError("grammar masks are not served by this runner")
        if isinstance(handle, RowsChanged):
            return handle
        if handle is not self._last:
            raise ValueError(
                f"step {handle.plan.step_id} is sampled after a later step was handed over"
            )
        rows, work, slot, on = handle.rows, handle.work, handle.slot, handle.tensors
        self.rows.append(rows)
        self._last = None  # once
        with using(self.kernels), attribute_oom(row.row for row in handle.plan.rows):
            self.device.run(lambda: self.step.sample(rows, work, on, slot.tensors))
        events = StepEvents(handle.started, handle.forwarded, self.device.record())
        pending = PendingStep(handle.plan, work, handle.params, slot.views, events, self.step.peak)
        slot.hold(pending)
        return pending

    def _hand_over(
        self, draft: PacketDraft, blocks: BlockChanges, rows: RowChanges
    ) -> tuple[StepSlot, OnDevice]:
        """Brings a packet to the device and changes what it says about rows and blocks."""
        slot = self.slots.take()
        packet = slot.fill(draft)
        on = OnDevice(packet)
        if slot.is_pinned:
            self.device.run(lambda: self.step.upload(packet, on))
            slot.sent(self.device.record())
        if blocks or rows:
            self.device.run(lambda: self.step.change(on, blocks, rows))
        return slot, on

    def _block_changes(self, plan: StepPlan, packet: PacketDraft) -> BlockChanges:
        sources = [source for source, _ in plan.block_copies]
        destinations = [destination for _, destination in plan.block_copies]
        return BlockChanges(
            packet.put(sources),
            packet.put(destinations),
            packet.put(self._new_blocks(plan)) if self._poison else EMPTY,
        )

    def _new_blocks(self, plan: StepPlan) -> list[int]:
        """Blocks in which nothing may be read before it is written."""
        block_size = self.layout.config.cache.block_size
        new: list[int] = []
        for admitted in plan.admitted:
            for table in admitted.block_tables:
                new += table[ceil_div(admitted.num_computed_tokens, block_size) :]
        for row in plan.rows:
            for block_ids in row.new_block_ids:
                new += block_ids
        return new

    def _graph_size(self, plan: StepPlan) -> int | None:
        """The size of the captured step that runs this plan: one token of each row, each chosen
        after. None for everything else."""
        if not self.graphs.sizes:
            return None
        decodes = all(
            row.num_scheduled_tokens == 1 and row.samples and not row.num_prompt_logits
            for row in plan.rows
        )
        return self.graphs.size_for(len(plan.rows)) if decodes else None

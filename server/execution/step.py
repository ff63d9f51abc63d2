"""What is run on the device in a step. Nothing here waits, or looks at a value.

Functions of this class are handed to a Device, one after the other; each starts kernels and copies
on persistent buffers. ``decode`` is also what a captured decode step consists of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

import kernels
from kernels import AttentionMetadata, AttentionShape
from kernels.footprint.row_state import COUNTED_WORDS, SEGMENT_WORDS, StepTable
from server.execution.decode_program import RowBuffers
from server.execution.device import Device
from server.execution.kv_pool import KVPool
from server.execution.layer_parts import StepTensors
from server.execution.live_bytes import PeakMeter, storage_bytes
from server.execution.model import Decoder
from server.execution.packet import Span
from server.execution.rows import RowChanges, StepRows
from server.execution.sampler import Sampler
from server.execution.sampling_batch import SampleWork
from server.memory.kv_groups import attention_shape, attention_shapes, layer_groups
from server.memory.layout import Layout
from server.memory.runner_buffers import LogitLimits, row_layout


@dataclass(frozen=True, slots=True)
class BlockChanges:
    """Cache blocks to copy before the step, and those that are new to their rows."""

    sources: Span
    destinations: Span
    new: Span  # filled with NaN where the runner poisons

    def __bool__(self) -> bool:
        return bool(self.sources or self.new)


@dataclass(slots=True)
class OnDevice:
    """Tensors of one step, filled in as its work is run."""

    packet: torch.Tensor  # where the host wrote it, until it was uploaded
    hidden: torch.Tensor | None = None  # [P + S, D]; None after a captured step
    is_decoded: bool = False  # tokens are chosen already


class DeviceStep:
    """
    Args:
        buffers: the layout's, on the device.
    """

    def __init__(
        self,
        decoder: Decoder,
        layout: Layout,
        buffers: Mapping[str, torch.Tensor],
        device: Device,
        limits: LogitLimits,
    ) -> None:
        config = layout.config
        self.decoder = decoder
        self.table = StepTable(config.scheduler.max_num_seqs)
        self.peak = PeakMeter(device.peak_meter)
        self.workspace = kernels.AttentionWorkspace(
            *attention_shapes(decoder.spec, config), device=device.torch_device
        )
        # Of each group of the KV cache.
        self._shapes = tuple(
            attention_shape(decoder.spec, layers[0], config)
            for layers in layer_groups(decoder.spec)
        )
        self._config = config
        self._layout = row_layout(decoder.spec, config)
        self._buffers = buffers
        self.cache = KVPool.of(buffers)
        self._copies = bool(layout.pinned)  # else a slot is where the device writes itself
        self._inputs = tuple(_step_buffers(buffers, n) for n in range(self._layout.groups))
        self._sampler = Sampler(buffers, decoder.logits, limits)
        self.decode_program = decoder.decode_program(
            RowBuffers(
                buffers,
                self._inputs,
                self._layout,
                self.table,
                config.cache.block_size,
                self.workspace.buffer,
            )
        )

    def clear(self) -> None:
        """Scratch starts as zeros, which its kernels may count on."""
        self.workspace.buffer.zero_()

    def forget(self) -> None:
        """Takes every row out of the batch: a step that is run now changes nothing."""
        self._buffers["packet"][: self.table.words].zero_()

    def upload(self, pinned: torch.Tensor, tensors: OnDevice) -> None:
        """The packet, to where captured steps read it. What is too long for there also goes whole
        to memory of its own."""
        fixed = self._buffers["packet"]
        fits = pinned.shape[0] <= fixed.shape[0]
        words = pinned.shape[0] if fits else self.table.words
        fixed[:words].copy_(pinned[:words], non_blocking=True)
        if fits:
            tensors.packet = fixed
        else:
            tensors.packet = torch.empty_like(pinned, device=fixed.device)
            tensors.packet.copy_(pinned, non_blocking=True)

    def change(
        self,
        tensors: OnDevice,
        blocks: BlockChanges,
        rows: RowChanges,
    ) -> None:
        """Rows and cache blocks, in the order of a plan's effects."""
        packet = tensors.packet
        if blocks.sources:
            sources, destinations = blocks.sources.of(packet), blocks.destinations.of(packet)
            self.cache.copy_blocks(sources, destinations)
        if rows.segments:
            kernels.write_rows(
                self._buffers["row_state"],
                packet,
                segments_at=rows.segments.first,
                num_segments=rows.segments.length // SEGMENT_WORDS,
            )
        if rows.counted:
            kernels.count_tokens(
                self._buffers["row_state"],
                packet,
                self._buffers["output_counts"],
                self._buffers["prompt_mask"],
                layout=self._layout,
                counted_at=rows.counted.first,
                num_counted=rows.counted.length // COUNTED_WORDS,
            )
        if blocks.new:
            self.cache.poison(blocks.new.of(packet).long())

    def forward(
        self, step: StepRows, work: SampleWork, tensors: OnDevice, num_layers: int | None
    ) -> None:
        """Any step: the model over its tokens, then the final norm of those that need logits."""
        packet = tensors.packet
        if self.decode_program is not None and work.is_plain and num_layers is None:
            with self.peak.watch(0, work.num_sampled):
                self.decode_program.run(
                    packet, step.num_rows, step.num_decode_steps, truncates=work.truncates
                )
            tensors.is_decoded = True
            return
        self._gather(packet, step.num_rows)
        with self.peak.watch(step.num_tokens, 0):
            x, residual = self.decoder.forward(
                self._step_tensors(
                    step.num_rows, step.num_tokens, step.max_query_len, step.max_seq_len
                ),
                num_layers,
            )
            picks = None if work.picks_all else work.picks.of(packet)
            tensors.hidden = self.decoder.pick(x, residual, picks)

    def decode(self, num_rows: int) -> None:
        """One token of every row, up to the logits of all. The packet may name fewer rows."""
        self._gather(self._buffers["packet"], num_rows)
        inputs = self._step_tensors(num_rows, num_rows, 1, self._config.scheduler.max_model_len)
        x, residual = self.decoder.forward(inputs)
        normed = self.decoder.pick(x, residual, None)
        del x, residual
        self.decoder.logits(normed, self._buffers["logits"][:num_rows])

    def sample(
        self,
        step: StepRows,
        work: SampleWork,
        tensors: OnDevice,
        slot: Mapping[str, torch.Tensor],
    ) -> None:
        """Scores prompts and chooses tokens; these go into their rows and into the slot."""
        if tensors.is_decoded:
            return
        packet, hidden, scored = tensors.packet, tensors.hidden, work.num_scored
        logit_rows = min(scored + work.num_sampled, self._config.scheduler.logit_rows)
        with self.peak.watch(0, logit_rows, storage_bytes(hidden)):
            if scored:
                self._sampler.score(work, packet, _there(hidden)[:scored], slot)
            if not work.num_sampled:
                return
            to_choose = hidden[scored:] if hidden is not None and scored else hidden
            got = self._sampler.choose(work, packet, to_choose, slot)
        chosen = self._buffers["chosen"][: work.num_sampled]
        kernels.commit_tokens(
            self._buffers["row_state"],
            packet,
            got.token_ids,
            got.non_finite,
            self._buffers["output_counts"],
            chosen,
            layout=self._layout,
            table=self.table,
            num_rows=step.num_rows,
        )
        if self._copies:
            slot["chosen"][: work.num_sampled].copy_(chosen, non_blocking=True)
        tensors.hidden = None

    def _gather(self, packet: torch.Tensor, num_rows: int) -> None:
        for group, inputs in enumerate(self._inputs):
            kernels.gather_step(
                self._buffers["row_state"],
                packet,
                inputs,
                layout=self._layout,
                table=self.table,
                num_rows=num_rows,
                block_size=self._config.cache.block_size,
                group=group,
            )

    def _step_tensors(
        self, num_rows: int, num_tokens: int, max_query_len: int, max_seq_len: int
    ) -> StepTensors:
        first = self._inputs[0]  # what is the same for every group is in all of them
        metadata: list[AttentionMetadata] = []
        first_with: dict[AttentionShape, AttentionMetadata] = {}
        token_ids, positions = first.token_ids[:num_tokens], first.positions[:num_tokens]
        query_start_loc = first.query_start_loc[: num_rows + 1]
        seq_lens = first.seq_lens[:num_rows]
        for inputs, shape in zip(self._inputs, self._shapes, strict=True):
            made = kernels.prepare_attention(
                query_start_loc=query_start_loc,
                seq_lens=seq_lens,
                block_tables=inputs.block_tables[:num_rows],
                slot_mapping=inputs.slot_mapping[:num_tokens],
                positions=positions,
                shape=shape,
                max_query_len=max_query_len,
                max_seq_len=max_seq_len,
                workspace=self.workspace,
                like=first_with.get(shape),
            )
            first_with.setdefault(shape, made)
            metadata.append(made)
        return StepTensors(
            token_ids=token_ids,
            positions=positions,
            cache=self.cache,
            metadata=tuple(metadata),
            workspace=self.workspace,
        )


def _there(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise ValueError("the step's work is run in the wrong order")
    return tensor


def _step_buffers(buffers: Mapping[str, torch.Tensor], group: int) -> kernels.StepBuffers:
    return kernels.StepBuffers(
        token_ids=buffers["step_token_ids"],
        positions=buffers["positions"],
        slot_mapping=buffers["slot_mapping"][group],
        query_start_loc=buffers["query_start_loc"],
        seq_lens=buffers["seq_lens"],
        block_tables=buffers["step_block_tables"][group],
        floats=buffers["step_floats"],
        top_k=buffers["step_top_k"],
        keys=buffers["step_keys"],
        output_positions=buffers["step_output_positions"],
    )

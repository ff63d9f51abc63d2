"""What host and device exchange about steps in flight: packets one way, results the other.

A device with memory of its own has two slots of pinned memory, used in turn: a step's packet is put
together in one while the step before it runs from the other, and its results stay readable until
the slot is used again. A device that shares the host's memory has one, in the layout's buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from server.engine.request import SamplingParams
from server.engine.step_plan import LogprobArrays, RowResult, StepPlan, StepResult
from server.execution.buffers import dtype_of
from server.execution.device import Device, Event
from server.execution.live_bytes import PeakMeter
from server.execution.out_of_memory import attribute_oom, release_frames
from server.execution.packet import PacketDraft
from server.execution.sampling_batch import SampleWork
from server.memory.kinds import Buffer
from server.memory.layout import Layout
from server.memory.runner_buffers import NUM_SLOTS, slot_shapes


class Unread(Protocol):
    def read(self) -> None:
        """Waits for the step and copies what it left in the slot."""
        ...


class StepSlot:
    """One set of buffers. ``tensors`` are for the device; ``views`` the same for the host."""

    def __init__(
        self, device: Device, tensors: Mapping[str, torch.Tensor], *, is_pinned: bool
    ) -> None:
        self._device = device
        self.tensors = tensors
        self.is_pinned = is_pinned
        self.views = {name: tensor.numpy() for name, tensor in tensors.items()}
        self._uploaded: Event | None = None
        self._unread: Unread | None = None

    def take(self) -> None:
        """Makes sure that nothing on its way still needs the slot. Waits only if something does:
        never while at most two steps are in flight."""
        if self._unread is not None:
            self._unread.read()
        if self._uploaded is not None and not self._uploaded.is_done:
            self._uploaded.wait()
        self._uploaded = self._unread = None

    def fill(self, draft: PacketDraft) -> torch.Tensor:
        """The packet in the slot; in memory of its own where it is longer than the slot's."""
        packet, words = self.tensors["packet"], self.views["packet"]
        if draft.num_words > len(words):
            packet = self._device.pinned((draft.num_words,), torch.int32)
            words = packet.numpy()
        draft.write(words)
        return packet[: draft.num_words]

    def sent(self, uploaded: Event) -> None:
        self._uploaded = uploaded

    def hold(self, unread: Unread) -> None:
        """``unread`` is read before the slot is used again."""
        self._unread = unread


class Slots:
    """``buffers`` are the layout's; ``pinned_bytes`` those of memory that all slots have beside."""

    def __init__(self, device: Device, layout: Layout, buffers: Mapping[str, torch.Tensor]) -> None:
        sets = [_pinned(device, layout.pinned) for _ in range(NUM_SLOTS if layout.pinned else 0)]
        self.pinned_bytes = sum(
            tensor.untyped_storage().nbytes() for one in sets for tensor in one.values()
        )
        self._slots = [StepSlot(device, one, is_pinned=True) for one in sets]
        if not sets:
            names = [name for name, *_ in slot_shapes(layout.model, layout.config, 1)]
            shared = {name: buffers[name] for name in names}
            self._slots.append(StepSlot(device, shared, is_pinned=False))
        self._next = 0

    def take(self) -> StepSlot:
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        slot.take()
        return slot


def _pinned(device: Device, buffers: Sequence[Buffer]) -> dict[str, torch.Tensor]:
    return {buffer.name: device.pinned(buffer.shape, dtype_of(buffer.format)) for buffer in buffers}


@dataclass(frozen=True, slots=True)
class StepEvents:
    started: Event
    forwarded: Event
    done: Event


class PendingStep:
    """A step on its way. ``params`` are its rows' when it was planned, ``views`` its slot's, which
    stay its own until it was read: the slot holds it."""

    def __init__(
        self,
        plan: StepPlan,
        work: SampleWork,
        params: Sequence[SamplingParams],
        views: Mapping[str, np.ndarray],
        events: StepEvents,
        peak: PeakMeter,
    ) -> None:
        self._plan = plan
        self._work = work
        self._params = params
        self._views = views
        self._events = events
        self._peak = peak
        self._result: StepResult | None = None
        self._error: BaseException | None = None
        self._was_read = False

    def result(self) -> StepResult:
        self.read()
        if self._result is None:
            raise self._error or RuntimeError("the step gave no result")
        return self._result

    def read(self) -> None:
        if self._was_read:
            return
        self._was_read = True
        try:
            with attribute_oom(row.row for row in self._plan.rows):
                self._events.done.wait()
                self._result = self._collect()
        except Exception as error:  # kept for whoever asks for the result
            release_frames(error)
            self._error = error

    def _collect(self) -> StepResult:
        events = self._events
        return StepResult(
            step_id=self._plan.step_id,
            rows=read_rows(self._plan, self._work, self._params, self._views),
            forward_seconds=events.forwarded.seconds_since(events.started),
            sample_seconds=events.done.seconds_since(events.forwarded),
            peak_activation_bytes=self._peak.peak_bytes,
        )


def read_rows(
    plan: StepPlan,
    work: SampleWork,
    params: Sequence[SamplingParams],
    views: Mapping[str, np.ndarray],
) -> tuple[RowResult, ...]:
    """What a finished step left in its slot, in the order of the plan."""
    steps = plan.num_decode_steps
    tokens = views["chosen"][: work.num_sampled * steps].reshape(steps, -1).T.tolist()
    chosen = _Report(views["chosen_logprob_ids"], views["chosen_logprobs"], work.asked_width)
    scored = _Report(views["scored_ids"], views["scored_logprobs"], work.scored_width)
    results: list[RowResult] = []
    choice = 0
    reading: list[int] = []  # the row whose part it is
    with attribute_oom(reading):
        for planned, given in zip(plan.rows, params, strict=True):
            reading[:] = (planned.row,)
            prompt = logprobs = None
            finite = True
            token_ids: tuple[int, ...] = ()
            if planned.num_prompt_logits:
                prompt, finite = scored.next(planned.num_prompt_logits, given.prompt_logprobs or 0)
            if planned.samples:
                asked = None
                if given.logprobs is not None:
                    asked, _ = chosen.next(1, given.logprobs)
                if finite:
                    token_ids, finite = _up_to_non_finite(tokens[choice])
                    logprobs = asked if finite else None
                choice += 1
            results.append(RowResult(planned.row, token_ids, not finite, logprobs, prompt))
    return tuple(results)


def _up_to_non_finite(tokens: list[int]) -> tuple[tuple[int, ...], bool]:
    """A row's tokens before the first that could not be chosen, and whether those are all."""
    if min(tokens) >= 0:
        return tuple(tokens), True
    return tuple(tokens[: next(n for n, token in enumerate(tokens) if token < 0)]), False


class _Report:
    """Log-probabilities one row of ``width`` after the other, read from the front."""

    def __init__(self, ids: np.ndarray, logprobs: np.ndarray, width: int) -> None:
        self._ids, self._logprobs, self._width = ids, logprobs, width
        self._position = 0

    def next(self, count: int, num_top: int) -> tuple[LogprobArrays, bool]:
        """The next ``count`` rows, packed, and whether all of them are numbers."""
        span = slice(self._position * self._width, (self._position + count) * self._width)
        self._position += count
        ids = self._ids[span].reshape(count, self._width)
        logprobs = self._logprobs[span].reshape(count, self._width)
        return pack_logprobs(ids, logprobs, num_top), bool(np.isfinite(logprobs).all())


def pack_logprobs(
    ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32], num_top: int
) -> LogprobArrays:
    """[P, 1 + at least num_top] ids and nats -> the first 1 + num_top columns, packed."""
    width = 1 + num_top
    return LogprobArrays(
        num_positions=len(ids),
        width=width,
        token_ids=ids[:, :width].astype("<i4").tobytes(),
        logprobs=logprobs[:, :width].astype("<f4").tobytes(),
    )

"""What the engine, the accountant and the start ask of a runner, whatever it runs on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import kernels
from server.engine.step_plan import ForwardHandle, PendingResult, StepPlan
from server.execution.live_bytes import PeakMeter


class Runner(Protocol):
    """Also the engine's Executor."""

    @property
    def overlaps(self) -> bool:
        """The next step may be handed over before the last result was asked for."""
        ...

    @property
    def peak(self) -> PeakMeter:
        """The most bytes of intermediates that were alive at once."""
        ...

    @property
    def workspace(self) -> kernels.AttentionWorkspace:
        """Attention's scratch, one for all layers."""
        ...

    @property
    def pinned_bytes(self) -> int:
        """Of the host's memory, for copies from and to the device."""
        ...

    @property
    def largest_step_seconds(self) -> float:
        """What the largest step takes; 0 before the warm-up."""
        ...

    def forward(self, plan: StepPlan) -> ForwardHandle: ...

    def forward_layers(self, plan: StepPlan, num_layers: int | None) -> ForwardHandle:
        """As ``forward``, through the first ``num_layers`` layers only (to measure by)."""
        ...

    def sample(self, handle: ForwardHandle, masks: dict[int, bytes] | None) -> PendingResult: ...

    def warm_up(self) -> int:
        """Before the first request: the measured intermediates of the largest step, in bytes."""
        ...

    def around_capture(self, watch: Callable[[], AbstractContextManager[None]]) -> None:
        """``watch`` is entered around whatever makes a driver take memory from now on."""
        ...

"""How long an engine has stood still, and from when on that means something.

    late     /ready says 503: others are to serve. Back as soon as there is progress.
    doubted  /health says 503
    lost     the process is killed; its requests end in an error, and another is started

A serving engine shows progress by its heartbeat and by its frames, once a step. So each bound is a
multiple of the longest step that was measured, and no less than a floor. A step may take longer
than any before it: it compiles a kernel, captures a graph, attends to a longer context. Whoever
computes meanwhile, as the kernel counts it, is given more time until it is late.

While an engine loads it has no heartbeat, and phases of unknown length. Then it is lost when it has
neither read nor computed anything for ``loading_s``; a slow disk that gives a byte now and then, an
import and a compiler are all progress.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from server.client.process_activity import Activity
from server.engine.events import StepStats


class Standing(IntEnum):
    MOVES = 0
    LATE = 1
    DOUBTED = 2
    LOST = 3


# So many of the longest step; the floors are in Patience.
_LATE_STEPS = 4
_COMPUTING_STEPS = 8
_DOUBT_STEPS = 12
_STALL_STEPS = 16


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds without progress, at least.

    ``loading_s`` is twice the 60 s after which an NFS client asks again for what did not come.
    """

    late_s: float = 1.0
    computing_s: float = 10.0  # late, although the process computes
    doubt_s: float = 30.0
    stall_s: float = 60.0
    loading_s: float = 120.0


class LongestStep:
    """Seconds of the longest step in the last one to two ``window_s``, and no less than ``floor``:
    the largest step, as the warm-up measured it."""

    def __init__(self, window_s: float = 300.0) -> None:
        self._window_s = window_s
        self._before = self._now = self._age_s = 0.0
        self.floor = 0.0

    @property
    def seconds(self) -> float:
        return max(self.floor, self._before, self._now)

    def note(self, step_s: float) -> None:
        self._now = max(self._now, step_s)

    def pass_time(self, seconds: float) -> None:
        self._age_s += seconds
        if self._age_s >= self._window_s:
            self._before, self._now, self._age_s = self._now, 0.0, 0.0


class Stillness:
    """One engine process. ``look`` is called at short and equal intervals; time is counted by its
    calls, so that one who is held up himself takes nobody else for still.

    Args:
        activity: the process's counters (server.client.process_activity). Only asked while there is
            no other progress.
    """

    def __init__(self, patience: Patience, activity: Callable[[], Activity]) -> None:
        self._patience = patience
        self._activity = activity
        self._heartbeat = -1
        self._seen: Activity | None = None
        self._frames = False
        self.longest = LongestStep()
        self.is_loading = True
        self.still_s = 0.0  # without progress that the engine shows
        self.idle_s = 0.0  # and without activity, at the end of it
        self._stood_s = 0.0  # without activity, in all of it

    @property
    def standing(self) -> Standing:
        patience, step_s = self._patience, self.longest.seconds
        if self.is_loading:
            return Standing.LOST if self.idle_s >= patience.loading_s else Standing.MOVES
        if self.still_s >= max(patience.stall_s, _STALL_STEPS * step_s):
            return Standing.LOST
        if self.still_s >= max(patience.doubt_s, _DOUBT_STEPS * step_s):
            return Standing.DOUBTED
        is_late = self.idle_s >= max(patience.late_s, _LATE_STEPS * step_s)
        computes_long = self.still_s >= max(patience.computing_s, _COMPUTING_STEPS * step_s)
        return Standing.LATE if is_late or computes_long else Standing.MOVES

    def begin_serving(self, largest_step_s: float) -> None:
        """The engine is ready; its warm-up measured how long its largest step takes."""
        self.is_loading = False
        self.longest.floor = largest_step_s
        self.still_s = self.idle_s = self._stood_s = 0.0
        self.note_frame()

    def note_frame(self, stats: StepStats | None = None) -> None:
        """The engine sent something; the figures of a step, where it did one.

        A step in which the process was stopped, or waited for a swapped page, is no longer for
        that: else one halt would make the next of several times its length look like a step.
        """
        self._frames = True
        if stats is not None:
            self.longest.note(stats.step_seconds - self._stood_s)

    def look(self, passed_s: float, heartbeat: int) -> Standing:
        """``passed_s`` seconds after the last look: how it stands now."""
        self.longest.pass_time(passed_s)
        if self._frames or (heartbeat != self._heartbeat and not self.is_loading):
            self._frames, self._heartbeat, self._seen = False, heartbeat, None
            self.still_s = self.idle_s = self._stood_s = 0.0
            return self.standing
        self.still_s += passed_s
        activity = self._activity()
        stands = self._seen in (None, activity)
        self.idle_s = self.idle_s + passed_s if stands else 0.0
        self._stood_s += passed_s if stands else 0.0
        self._seen = activity
        return self.standing

    @property
    def reason(self) -> str:
        """Why a lost engine is killed."""
        if self.is_loading:
            return (
                f"while loading it read no bytes and computed nothing for {self.idle_s:.0f} s: "
                "check the model's disk or network file system"
            )
        return (
            f"it made no progress for {self.still_s:.0f} s; its longest step took "
            f"{self.longest.seconds:.1f} s"
        )

"""EngineCore: the engine's one loop body, around a scheduler and an executor.

Standard library only: it runs the same in the engine process, in tests and offline. One thread
calls everything here. Between ``begin_step`` and ``end_step`` the executor may be busy, and
``submit``, ``abort`` and ``finish`` may be called.

With an executor that overlaps, a step is begun before the one in flight is ended, so that the
device never waits for the scheduler:

    host    begin 0, begin 1 | end 0, begin 2 | end 1, begin 3 | ...
    device  step 0 ............ step 1 ......... step 2 ......... ...
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from server.engine.admission import Admission
from server.engine.constraints import TokenConstraints, Unconstrained
from server.engine.decode_pace import DecodePace
from server.engine.engine_config import SchedulerConfig
from server.engine.events import Accepted, EngineFrame, RequestMemory
from server.engine.gauges import EngineGauges, LoopCounts, read_gauges
from server.engine.invariants import check_invariants
from server.engine.kv_cache_manager import KVCacheManager
from server.engine.kv_spec import KVCacheSpec
from server.engine.prefix_cache import Digest, sha256_digest
from server.engine.recovery import failure_of
from server.engine.request import EngineRequest
from server.engine.results import check_result
from server.engine.scheduler import Scheduler
from server.engine.sequence import Request
from server.engine.step import (
    OutOfMemoryEvent,
    StepFailure,
    StepInFlight,
    step_stats,
)
from server.engine.step_plan import Executor, ExecutorLost, PendingResult, StepPlan, StepResult

log = logging.getLogger(__name__)

_STEP_FAILED = "The model failed twice on a step of this request. Try again later."


class EngineCore:
    """
    Args:
        clock: seconds, monotonic; deadlines and StepStats are in it.
        strict: check every invariant after every change (for tests; slow).
        digest: the prefix cache's hash.
        constraints: what restricts the choice of tokens.
        on_shortage: told of every step that found no memory, once its requests are decided about.

    Raises:
        ValueError: a kind of KV cache group is not served.
    """

    def __init__(
        self,
        executor: Executor,
        kv: KVCacheSpec,
        config: SchedulerConfig,
        *,
        prefix_caching: bool = True,
        clock: Callable[[], float] = time.monotonic,
        strict: bool = False,
        digest: Digest = sha256_digest,
        constraints: TokenConstraints | None = None,
        on_shortage: Callable[[OutOfMemoryEvent], None] = lambda shortage: None,
    ) -> None:
        self._on_shortage = on_shortage
        self._executor = executor
        self._config = config
        self._clock = clock
        self._strict = strict
        self._kv = KVCacheManager(
            kv,
            max_chunk=config.max_num_batched_tokens,
            prefix_caching=prefix_caching,
            digest=digest,
            clock=clock,
        )
        self._constraints = constraints or Unconstrained()
        self.scheduler = Scheduler(self._kv, config, clock, self._constraints)
        self._roster = self.scheduler.state
        self._admission = Admission(
            self._kv, config, self._roster.waiting, kv.page_bytes, executor.supported_tasks
        )
        self._in_flight: deque[StepInFlight] = deque()
        self._num_void = 0  # steps in flight that followed one that raised
        self._last_end = clock()
        self._pace = DecodePace()
        self._num_arrivals = 0
        self._steps = 0
        self._failed_steps = 0
        self._heartbeat = 0

    @property
    def has_work(self) -> bool:
        """There is something to compute, to wait for or to say."""
        return bool(self._roster.requests or self._roster.outputs or self._in_flight)

    # -- requests ----------------------------------------------------------------------------

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Accepts or refuses the list whole; the next frame says which."""
        if not requests:
            return
        refusal = self._admission.refusal(requests, self._roster.requests)
        if refusal is not None:
            self._roster.outputs.refused.append(refusal)
            return
        now = self._clock()
        for request in requests:
            self._roster.add(self._live(request, now))
        ids = tuple(request.request_id for request in requests)
        self._roster.outputs.accepted.append(Accepted(ids))
        self._check_if_strict()

    def _live(self, request: EngineRequest, now: float) -> Request:
        self._num_arrivals += 1
        timeout = request.timeout_s
        return Request(
            request,
            arrival=self._num_arrivals,
            arrival_time=now,
            timeout_s=self._config.queue_timeout_s if timeout is None else timeout,
            eos_token_ids=self._config.eos_token_ids,
            num_groups=self._kv.num_groups,
            max_decode_steps=self._executor.max_decode_steps(request.sampling),
        )

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends the requests now, whatever they are doing. Unknown ids are ignored."""
        self.scheduler.abort(request_ids)
        self._check_if_strict()

    def finish(self, request_id: str, choice: int, num_tokens: int) -> None:
        """Ends one choice that met a stop string, with ``num_tokens`` of its tokens. No event
        follows for it."""
        self.scheduler.finish(request_id, choice, num_tokens)
        self._check_if_strict()

    def drain(self) -> None:
        """From now on every list is refused; what was accepted is served to its end."""
        self._admission.is_open = False

    def reset_prefix_cache(self) -> None:
        """Forgets every cached prefix. Running requests keep what they have."""
        self._kv.reset_cache()
        self._check_if_strict()

    # -- the loop ----------------------------------------------------------------------------

    @property
    def max_in_flight(self) -> int:
        """Steps that may have been begun and not ended."""
        return 2 if self._executor.overlaps else 1

    def step(self) -> EngineFrame | None:
        """Begins what can be begun, ends the oldest step, and tells what happened since the last.

        None: there was nothing to do.
        """
        while len(self._in_flight) < self.max_in_flight and self.begin_step() is not None:
            continue
        if self._in_flight:
            return self.end_step(self._in_flight[0])
        return self._roster.outputs.flush() if self._roster.outputs else None

    def begin_step(self) -> StepInFlight | None:
        """
        1. The scheduler plans a step. None, where there is nothing to compute, or it cannot be
           known before a step in flight has ended.
        2. The executor starts the forward pass.
        3. While it runs, the constraints say which tokens each row may choose.
        4. The executor starts the sampling behind it.
        """
        self._heartbeat += 1
        if not self._may_begin():
            return None
        began = self._clock()
        plan = self.scheduler.schedule(self._pace.decode_steps)
        self._check_if_strict()
        if not plan.rows:
            return None
        pending, failure = self._start(plan)
        step = StepInFlight(plan, pending, began, self.scheduler.take_counts(), failure)
        self._in_flight.append(step)
        return step

    def _may_begin(self) -> bool:
        """After a step that raised, nothing is begun until all that were begun are ended."""
        if not self._in_flight:
            return True
        if self._num_void or any(step.pending is None for step in self._in_flight):
            return False
        return len(self._in_flight) < self.max_in_flight and not self.scheduler.is_isolating

    def end_step(self, step: StepInFlight) -> EngineFrame:
        """Ends the oldest step in flight.

        1. Wait for the executor.
        2. The scheduler takes in the result; a step that raised is retried or given up, and the
           steps after it are void.
        3. Everything that happened goes into one frame.

        Raises:
            ValueError: ``step`` is not the oldest in flight.
        """
        if not self._in_flight or self._in_flight[0] is not step:
            raise ValueError(f"step {step.plan.step_id} is not the oldest in flight")
        result = self._finish_step(step)
        self._in_flight.popleft()
        self._steps += 1
        now = self._clock()
        seconds = now - max(step.began, self._last_end)
        self._last_end = now
        num_computed = step.plan.num_tokens if result is not None else 0
        self._admission.throughput.note(num_computed, seconds)
        self._pace.note(step.plan, seconds)
        self._check_if_strict()
        return self._roster.outputs.flush(
            step_stats(step, result, seconds, self.scheduler.take_discarded())
        )

    def _start(self, plan: StepPlan) -> tuple[PendingResult | None, StepFailure | None]:
        # Whatever the model raises is the step's failure, not the loop's: the scheduler decides
        # about its requests, and the log keeps the cause.
        try:
            handle = self._executor.forward(plan)
            masks = self._constraints.masks(self._roster.in_flight[plan.step_id])
            return self._executor.sample(handle, masks), None
        except ExecutorLost:
            raise
        except Exception as error:
            return None, failure_of(plan, error, log)

    def _finish_step(self, step: StepInFlight) -> StepResult | None:
        """The step's result. None where it raised, or followed one that did."""
        result, failure = self._await(step)
        if self._num_void:
            self._num_void -= 1
            self.scheduler.discard_step(step.plan, 0 if result is None else result.num_tokens)
            return None
        if failure is not None:
            self._failed_steps += 1
            self._num_void = len(self._in_flight) - 1
            self._fail(step.plan, failure)
        if result is not None:
            self.scheduler.update(step.plan, result)
        return result

    def _await(self, step: StepInFlight) -> tuple[StepResult | None, StepFailure | None]:
        if step.pending is None:
            return None, step.failure
        try:
            result = step.pending.result()
            check_result(step.plan, result)
        except ExecutorLost:
            raise
        except Exception as error:
            return None, failure_of(step.plan, error, log)
        return result, None

    def _fail(self, plan: StepPlan, failure: StepFailure) -> None:
        if not failure.asked:
            self.scheduler.fail_step(plan, _STEP_FAILED)
            return
        asked, ended = self.scheduler.fail_for_memory(plan, failure.asked)
        shortage = OutOfMemoryEvent(
            plan.step_id, plan.num_tokens, len(plan.rows), asked, ended, failure.reason
        )
        self._on_shortage(shortage)

    # -- what can be seen --------------------------------------------------------------------

    def gauges(self) -> EngineGauges:
        loop = LoopCounts(
            failed_steps=self._failed_steps,
            steps=self._steps,
            heartbeat=self._heartbeat,
            draining=int(not self._admission.is_open),
        )
        return read_gauges(self._roster, loop)

    def memory_of(self, request_ids: Iterable[str]) -> tuple[RequestMemory, ...]:
        """What the live ones of these requests hold. Unknown ids are left out."""
        known = (self._roster.requests.get(request_id) for request_id in request_ids)
        return tuple(self._roster.memory_of(request) for request in known if request is not None)

    def check(self) -> None:
        """
        Raises:
            InvariantError: blocks, tables, rows, queues or the cache do not agree.
        """
        check_invariants(self._roster)

    def _check_if_strict(self) -> None:
        if self._strict:
            self.check()

"""An executor without a model, which notices every wrong block.

Its model is a pure function (fake_model), so what a request generates is known without running the
engine; its rows notice whatever is read or written in a wrong place (fake_rows).

Where it overlaps, a step is carried out when its result is asked for: as late as a device could.
Until then none of its rows' blocks may be handed out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from server.engine.constraints import Masks
from server.engine.kv_spec import GroupKind, KVCacheGroup, KVCacheSpec
from server.engine.request import SamplingParams, Task
from server.engine.step_plan import (
    ForwardHandle,
    LogprobArrays,
    PlannedRow,
    RowResult,
    StepPlan,
    StepResult,
)
from tests.engine.fake_model import model_token, pack_logprobs
from tests.engine.fake_rows import FakeRow, FakeRows


def kv_spec(
    num_blocks: int, block_size: int, windows: Sequence[int | None] = (None,)
) -> KVCacheSpec:
    """A group for each of ``windows``, of one layer; None is a full one."""
    groups = tuple(
        KVCacheGroup(
            GroupKind.FULL if window is None else GroupKind.WINDOW,
            (layer,),
            bytes_per_token=8,
            block_size=block_size,
            window=window,
        )
        for layer, window in enumerate(windows)
    )
    return KVCacheSpec(groups, num_blocks)


class FakeFailure(RuntimeError):
    """The failure that a test asked for."""


@dataclass
class RowAfter:
    """A row as a step left it."""

    tables: list[list[int]]
    token_ids: tuple[int, ...]


@dataclass(eq=False)
class FakeStep:
    """A step that was handed over. ``blocks`` are those that its rows read or write."""

    plan: StepPlan
    blocks: set[int]
    after: dict[int, RowAfter] = field(default_factory=dict)
    is_sampled: bool = False
    masks: Masks = field(default_factory=dict)
    result: StepResult | None = None
    error: Exception | None = None


@dataclass
class FakePending:
    executor: FakeExecutor
    step: FakeStep

    def result(self) -> StepResult:
        self.executor.finish(self.step)
        self.executor.maybe_fail("result")
        if self.step.error is not None:
            raise self.step.error
        assert self.step.result is not None
        return self.step.result


def one_of(planned: PlannedRow, num_decode_steps: int) -> PlannedRow:
    """What a row computes first."""
    later = num_decode_steps - 1
    return replace(planned, num_scheduled_tokens=planned.num_scheduled_tokens - later)


class FakeExecutor:
    """
    Args:
        overlaps: steps are carried out in order, each when its result is asked for.
        fail_at: "forward" (before any effect), "device" (in the midst of them), "sample" or
            "result" (after them): the next step raises there, once. What a device was given after
            a step that failed on it fails as well.
        poison_tokens: a row that knows one of these gives non-finite logits.
        decode_steps: tokens that a plan may give a row that reports no log-probabilities.
    """

    def __init__(
        self,
        spec: KVCacheSpec,
        *,
        vocab: int,
        eos_token_ids: tuple[int, ...] = (),
        poison_tokens: tuple[int, ...] = (),
        overlaps: bool = False,
        supported_tasks: frozenset[Task] = frozenset({Task.GENERATE}),
        decode_steps: int = 1,
    ) -> None:
        self.overlaps = overlaps
        self.decode_steps = 1 if overlaps else decode_steps
        self.supported_tasks = supported_tasks
        self.vocab = vocab
        self.eos_token_ids = eos_token_ids
        self.poison_tokens = poison_tokens
        self.rows = FakeRows(spec)
        self.planned_tables: dict[int, list[list[int]]] = {}  # by row, as the last plan left them
        self.planned_tokens: dict[int, int] = {}  # by row, computed when all plans are carried out
        self.steps: list[FakeStep] = []  # begun, and not known to be done
        self.every_step: dict[int, FakeStep] = {}
        self.plans: list[StepPlan] = []
        self.fail_at = ""
        self.fail_always_for: int | None = None  # a token: any step with it in a row raises

    @property
    def violations(self) -> list[str]:
        return self.rows.violations

    def max_decode_steps(self, sampling: SamplingParams) -> int:
        return 1 if sampling.logprobs is not None else self.decode_steps

    def maybe_fail(self, point: str) -> None:
        if self.fail_at == point:
            self.fail_at = ""
            raise FakeFailure(f"asked to fail at {point}")

    def forward(self, plan: StepPlan) -> StepPlan:
        self.maybe_fail("forward")
        self.plans.append(plan)
        step = FakeStep(plan, self._note_blocks(plan))
        self.steps.append(step)
        self.every_step[plan.step_id] = step
        if not self.overlaps:
            self._carry_out(step)
            if step.error is not None:
                self.finish(step)
                raise step.error
        return plan

    def sample(self, handle: ForwardHandle, masks: Masks | None) -> FakePending:
        if not isinstance(handle, StepPlan):
            raise TypeError("the handle is not one of this executor's")
        (step,) = (step for step in self.steps if step.plan is handle)
        if self.fail_at == "sample":
            self.finish(step)  # so that nothing of it is still to come
        self.maybe_fail("sample")
        step.is_sampled, step.masks = True, masks or {}
        if not self.overlaps:
            self._choose(step)
            if step.error is not None:
                self.finish(step)
                raise step.error
        return FakePending(self, step)

    def finish(self, step: FakeStep) -> None:
        """Carries out what is left to do up to the step, after which its blocks are let go."""
        while step in self.steps:
            first = self.steps[0]
            if self.overlaps:
                self._carry_out(first)
                self._choose(first)
            self.steps.pop(0)
            if first.error is not None:
                for later in self.steps:
                    later.error = FakeFailure("a step before this one failed")
                    later.after.clear()

    def _note_blocks(self, plan: StepPlan) -> set[int]:
        """The blocks that the plan's rows read or write: all that are not behind a window of their
        first token. Those handed out by it must be nobody's in flight."""
        for row in plan.released:
            self.planned_tables.pop(row, None)
        fresh = {destination for _, destination in plan.block_copies}
        for admitted in plan.admitted:
            self.planned_tables[admitted.row] = [list(table) for table in admitted.block_tables]
            self.planned_tokens[admitted.row] = admitted.num_computed_tokens
            for table in admitted.block_tables:
                fresh.update(table[-(-admitted.num_computed_tokens // self.rows.block_size) :])
        for planned in plan.rows:
            for group, block_ids in enumerate(planned.new_block_ids):
                self.planned_tables[planned.row][group].extend(block_ids)
                fresh.update(block_ids)
        for step in self.steps:
            if fresh & step.blocks:
                raise self.rows.violation(
                    f"step {plan.step_id} is given blocks {fresh & step.blocks}, which step "
                    f"{step.plan.step_id} in flight still uses"
                )
        blocks: set[int] = set()
        for row in plan.rows:
            start = self.planned_tokens[row.row]
            for table, seen in zip(
                self.planned_tables[row.row], self.rows.seen(start), strict=True
            ):
                blocks.update(table[seen // self.rows.block_size :])
            self.planned_tokens[row.row] += row.num_scheduled_tokens
        # A copy's source may be nobody's any more: a step reads its sources before it writes.
        return blocks | {destination for _, destination in plan.block_copies}

    def _carry_out(self, step: FakeStep) -> None:
        if step.error is not None:
            return
        try:
            self._effects(step.plan)
        except Exception as error:
            step.error = error.with_traceback(None)
        step.after = {
            row.row: self._after(row.row) for row in step.plan.rows if row.row in self.rows
        }

    def _choose(self, step: FakeStep) -> None:
        if step.error is not None or not step.is_sampled:
            return
        try:
            rows = tuple(
                self._repeated(planned, step.masks.get(planned.row), step.plan.num_decode_steps)
                for planned in step.plan.rows
            )
        except Exception as error:
            step.error = error.with_traceback(None)
            return
        step.result = StepResult(step.plan.step_id, rows)
        step.after = {row.row: self._after(row.row) for row in step.plan.rows}

    def _after(self, row: int) -> RowAfter:
        fake = self.rows[row]
        return RowAfter([list(table) for table in fake.tables], tuple(fake.token_ids))

    def _effects(self, plan: StepPlan) -> None:
        for row in plan.released:
            self.rows.pop(row, None)
        self.rows.copy_blocks(plan.block_copies)
        for admitted in plan.admitted:
            self.rows.admit(admitted)
        self.maybe_fail("device")
        first = [one_of(planned, plan.num_decode_steps) for planned in plan.rows]
        for planned in first:
            self.rows.write(planned)
        for planned in first:
            self.rows.verify(planned)
        if any(self.fail_always_for in self.rows[row.row].token_ids for row in plan.rows):
            raise FakeFailure("a row has the token that always fails")

    # -- results -----------------------------------------------------------------------------

    def _repeated(
        self, planned: PlannedRow, mask: bytes | None, num_decode_steps: int
    ) -> RowResult:
        """Each token is computed behind the one before it, whatever that one is."""
        if num_decode_steps == 1:
            return self._result(planned, mask)
        if planned.num_scheduled_tokens != num_decode_steps or not planned.samples or mask:
            raise self.rows.violation(f"row {planned.row} is not given {num_decode_steps} tokens")
        one, tokens = replace(planned, num_scheduled_tokens=1, new_block_ids=()), []
        for step in range(num_decode_steps):
            if step:
                self.rows.write(one)
                self.rows.verify(one)
            result = self._result(one, None)
            if result.non_finite:
                return replace(result, token_ids=tuple(tokens))
            tokens += result.token_ids
        return RowResult(planned.row, tuple(tokens))

    def _result(self, planned: PlannedRow, mask: bytes | None) -> RowResult:
        row = self.rows[planned.row]
        if any(token in self.poison_tokens for token in row.token_ids):
            if planned.samples:
                row.append(0)  # a place that a step in flight may count on
            return RowResult(planned.row, non_finite=True)
        prompt_logprobs = self._prompt_logprobs(row, planned)
        if not planned.samples:
            return RowResult(planned.row, prompt_logprobs=prompt_logprobs)
        if row.num_computed != len(row.token_ids):
            raise self.rows.violation(f"row {planned.row} samples before its last known token")
        sampling = row.admitted.sampling
        prefix = row.prefixes[-1]
        forbidden = self._forbidden(sampling) if planned.min_tokens_pending else ()
        if mask is not None:
            forbidden += tuple(t for t in range(self.vocab) if not mask[t // 8] >> t % 8 & 1)
        token = model_token(prefix, sampling, row.admitted.choice, self.vocab, forbidden)
        row.append(token)
        logprobs = None
        if sampling.logprobs is not None:
            logprobs = pack_logprobs([(prefix, token)], sampling.logprobs, self.vocab)
        return RowResult(planned.row, (token,), logprobs=logprobs, prompt_logprobs=prompt_logprobs)

    def _forbidden(self, sampling: SamplingParams) -> tuple[int, ...]:
        eos = () if sampling.ignore_eos else self.eos_token_ids
        return (*eos, *sampling.stop_token_ids)

    def _prompt_logprobs(self, row: FakeRow, planned: PlannedRow) -> LogprobArrays | None:
        num_top = row.admitted.sampling.prompt_logprobs
        if not planned.num_prompt_logits:
            return None
        if num_top is None:
            raise self.rows.violation(f"row {planned.row} scores a prompt that nobody asked about")
        start = row.num_computed - planned.num_scheduled_tokens
        positions = range(start, start + planned.num_prompt_logits)
        if positions[-1] + 1 >= row.admitted.num_prompt_tokens:
            raise self.rows.violation(f"row {planned.row} scores a token after its prompt")
        scored = [(row.prefixes[p], row.token_ids[p + 1]) for p in positions]
        return pack_logprobs(scored, num_top, self.vocab)

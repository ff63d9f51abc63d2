"""A constrained request: its masks are made of the tokens before, and nobody else waits for it."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from itertools import pairwise

import pytest

from server.engine.constraints import Masks
from server.engine.sequence import Sequence
from server.engine.step import ScheduledRow
from tests.engine.engine_story import VOCAB, Story, prompt, solo

pytestmark = pytest.mark.usefixtures("quiet_engine")


class Rising:
    """The tokens of request "a" rise by 1 to 50 each: what may come next, the last one says."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def waits(self, sequence: Sequence) -> bool:
        return sequence.request.id == "a"

    def masks(self, rows: Rows[ScheduledRow]) -> Masks | None:
        found = {}
        for row in rows:
            if row.sequence.request.id == "a" and row.chunk.samples:
                known = tuple(row.sequence.token_ids)
                self.asked.append(known)
                found[row.row] = _mask(range(known[-1] + 1, known[-1] + 51))
        return found or None


def _mask(allowed: range) -> bytes:
    bits = bytearray(-(-VOCAB // 8))
    for token in allowed:
        bits[token // 8] |= 1 << token % 8
    return bytes(bits)


@pytest.mark.parametrize("overlaps", [False, True])
def test_each_token_is_one_that_those_before_it_allow(overlaps: bool) -> None:
    constraints = Rising()
    story = Story(overlaps=overlaps, constraints=constraints)
    story.ask("a", prompt(5), max_tokens=6)
    story.ask("b", prompt(5, 100), max_tokens=6)
    story.run()
    said = (*prompt(5), *story.tokens("a"))
    assert all(1 <= after - before <= 50 for before, after in pairwise(said))
    assert constraints.asked == [said[:known] for known in range(5, 11)], "every token is known"
    assert story.tokens("b") == solo(prompt(5, 100), 6), "who is free chooses freely"


def test_only_the_rows_that_wait_are_left_out_of_a_step_planned_ahead() -> None:
    story = Story(overlaps=True, constraints=Rising())
    story.ask("a", prompt(3), max_tokens=4)
    story.ask("b", prompt(3, 100), max_tokens=4)
    first, ahead = story.begin(), story.begin()
    row_of_a, row_of_b = story.sequence("a").row, story.sequence("b").row
    assert [row.row for row in first.plan.rows] == [row_of_a, row_of_b]
    assert [row.row for row in ahead.plan.rows] == [row_of_b]
    story.end(first)
    assert [row.row for row in story.begin().plan.rows] == [row_of_a, row_of_b]


def test_where_all_wait_one_step_is_in_flight() -> None:
    story = Story(overlaps=True, constraints=Rising())
    story.ask("a", prompt(3), max_tokens=3)
    step = story.begin()
    assert story.core.begin_step() is None
    story.end(step)
    story.run()
    assert len(story.executor.plans) == 3
    assert story.num_discarded == 0


def test_a_prompt_in_several_chunks_is_planned_ahead_until_its_last() -> None:
    story = Story(overlaps=True, constraints=Rising(), max_num_batched_tokens=2)
    story.ask("a", prompt(4), max_tokens=2)
    chunks = [story.begin().plan.rows[0].samples, story.begin().plan.rows[0].samples]
    assert chunks == [False, True]


def test_a_constraint_that_fails_is_its_steps_failure() -> None:
    class Broken(Rising):
        def masks(self, rows: Rows[ScheduledRow]) -> Masks | None:
            raise RuntimeError("no such state")

    story = Story(overlaps=True, constraints=Broken())
    story.ask("a", prompt(3))
    story.run()
    assert story.ending("a").error_code == "INTERNAL"

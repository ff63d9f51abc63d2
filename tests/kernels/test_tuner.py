"""The tuner: how it chooses, what it drops unmeasured, and the problems that it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this machine")

from kernels.bench.row import Call
from kernels.bench.timing import Run
from kernels.gate.offline import Figures
from kernels.tuner.problem import Problem, Shape
from kernels.tuner.problems import all_problems
from kernels.tuner.pruning import resident_blocks, why_dropped
from kernels.tuner.search import Bench, Choice, choose, choose_all
from kernels.tuning import Tuning, lookup
from tests.kernels.own_process import ROOT, run_python

# --- choosing -------------------------------------------------------------------------------------


class LookedUp:
    """A timer of calls that return their own microseconds."""

    def __init__(self) -> None:
        self.at_once: list[int] = []

    def ready(self, calls: Sequence[Call], captured: bool) -> Run:
        assert captured
        return Run(calls[0], 1)

    def measure(self, runs: Mapping[str, Run], seconds: float) -> dict[str, list[float]]:
        self.at_once.append(len(runs))
        return {name: [float(str(run.start()))] for name, run in runs.items()}


def timed(time_of: Callable[[Tuning], float], device: torch.device, sets: int) -> list[Call]:
    """What a launcher does: look the configuration up, then take as long as it takes."""
    taken = time_of(lookup("embedding", 90))
    return [lambda: taken] * sets


def problem(
    candidates: Sequence[int], *times: Callable[[Tuning], float], name: str = "embedding"
) -> Problem:
    return Problem(
        name=name,
        when={"embedding": {}},
        candidates=tuple({"embedding": Tuning({"BLOCK": block}, 4, 1)} for block in candidates),
        shapes=tuple(Shape(str(n), 1000, partial(timed, time)) for n, time in enumerate(times)),
    )


def bench(timer: LookedUp, clock: Callable[[], float] = lambda: 0.0) -> Bench:
    return Bench(torch.device("cpu"), 90, timer, cache_bytes=0, clock=clock)


def time_by(table: dict[int, float]) -> Callable[[Tuning], float]:
    """1024 is the block that the shipped table has."""
    return lambda tuned: table[tuned.blocks["BLOCK"]]


def chosen_block(choice: Choice) -> int | None:
    return choice.rows[0].tuning.blocks["BLOCK"] if choice.rows else None


def test_the_lowest_mean_over_all_shapes_is_chosen():
    small = time_by({1024: 10.0, 1: 5.0, 2: 9.0, 3: 8.0})
    large = time_by({1024: 100.0, 1: 190.0, 2: 60.0, 3: 80.0})
    timer = LookedUp()
    found = choose(problem([1, 2, 3], small, large), [0, 1, 2], bench(timer), 9.0, (), print)
    assert chosen_block(found) == 2
    assert found.ratio == pytest.approx((0.9 * 0.6) ** 0.5)
    assert found.rows[0].archs == (90,)
    assert timer.at_once == [4, 4]  # the table's own takes its turns too


def test_dropped_candidates_are_not_timed():
    times = time_by({1024: 10.0, 1: 1.0, 2: 9.0})
    assert chosen_block(choose(problem([1, 2], times), [1], bench(LookedUp()), 9.0, (), print)) == 2


def test_a_gain_within_the_noise_changes_nothing():
    times = time_by({1024: 10.0, 1: 9.95})
    assert choose(problem([1], times), [0], bench(LookedUp()), 9.0, (), print).rows == ()
    assert choose(problem([1], times), [], bench(LookedUp()), 9.0, (), print).rows == ()


def test_many_candidates_take_turns_in_groups_that_share_the_table_s_own():
    times = {1024: 10.0} | {block: 9.0 - block / 100 for block in range(1, 21)}
    timer = LookedUp()
    found = choose(problem(range(1, 21), time_by(times)), range(20), bench(timer), 9.0, (), print)
    assert chosen_block(found) == 20
    assert timer.at_once == [9, 9, 5]


def test_a_candidate_that_the_gpu_refuses_is_left_out_and_told():
    def times(tuned: Tuning) -> float:
        if tuned.blocks["BLOCK"] == 1:
            raise RuntimeError("out of resources")
        return 10.0 if tuned.blocks["BLOCK"] == 1024 else 5.0

    lines: list[str] = []
    found = choose(problem([1, 2], times), [0, 1], bench(LookedUp()), 9.0, (), lines.append)
    assert chosen_block(found) == 2
    assert lines == ["embedding [0] failed at 0: out of resources"]


def test_later_problems_see_what_earlier_ones_chose_and_time_is_obeyed():
    now = 0.0

    def tick(line: str) -> None:
        nonlocal now
        now += 40.0
        lines.append(line)

    lines: list[str] = []
    seen: list[int] = []

    def watch(tuned: Tuning) -> float:
        seen.append(tuned.blocks["BLOCK"])
        return 10.0

    first = problem([1], time_by({1024: 10.0, 1: 5.0}), name="first")
    problems = [first, problem([2], watch, name="second"), problem([3], watch, name="third")]
    kept = {"first": [0], "second": [0], "third": [0]}
    timer = bench(LookedUp(), clock=lambda: now)
    choices = choose_all(problems, kept, timer, 70.0, tick)
    assert [choice.problem for choice in choices] == ["first", "second"]
    assert seen == [1, 2]  # the table's turn of the second problem is the first one's winner
    assert lines[-1] == "third: the time is over, its rows stay"
    assert "embedding BLOCK=1 warps=4 stages=1" in lines[0]


# --- dropping -------------------------------------------------------------------------------------


def figures(registers: int = 64, shared: int = 0, warps: int = 4, spills: int = 0) -> Figures:
    return Figures(
        warps=warps,
        registers=registers,
        stack=0,
        local=0,
        spills=spills,
        shared=shared,
        wgmma=0,
        mma=0,
        async_copies=0,
        bulk_copies=0,
        vector_loads=0,
        doubles=0,
    )


@pytest.mark.parametrize(
    ("found", "arch", "blocks"),
    [
        (figures(registers=128, warps=4), 90, 4),  # 16,384 registers a block
        (figures(registers=129, warps=4), 90, 3),  # handed out in units of 256 a warp
        (figures(registers=32, warps=4), 90, 16),  # 64 warps
        (figures(registers=32, warps=4), 89, 12),  # 48 warps
        (figures(registers=16, warps=1), 90, 32),
        (figures(registers=64, shared=72 * 1024), 90, 3),
        (figures(registers=64, shared=72 * 1024), 80, 2),
        (figures(registers=64, shared=227 * 1024), 90, 1),
        (figures(registers=64, shared=227 * 1024 + 1), 90, 0),
        (figures(registers=255, warps=16), 90, 0),
    ],
)
def test_a_multiprocessor_holds_so_many_blocks(found: Figures, arch: int, blocks: int):
    assert resident_blocks(found, arch) == blocks


def test_what_spills_or_does_not_fit_is_dropped():
    plain = problem([1], lambda tuned: 1.0)
    candidate = plain.candidates[0]
    assert why_dropped(plain, candidate, {"k": figures()}, 90) is None
    assert why_dropped(plain, candidate, {"k": figures(spills=3)}, 90) == "k spills 3 times"
    assert "does not fit" in str(
        why_dropped(plain, candidate, {"a": figures(), "k": figures(shared=1 << 20)}, 90)
    )


def test_decode_candidates_whose_programs_would_wait_are_dropped():
    decode = next(problem for problem in all_problems() if problem.name == "decode hd128")
    many = next(c for c in decode.candidates if c["paged_decode_work"].blocks["PER_SM"] == 4)
    fits = {"paged_decode": figures(registers=128, shared=50 * 1024)}
    assert decode.refuse(many, fits) is None
    for registers, shared in ((136, 50 * 1024), (128, 58 * 1024)):
        given = {"paged_decode": figures(registers=registers, shared=shared)}
        assert "4 programs want" in str(decode.refuse(many, given))


# --- the shipped problems -------------------------------------------------------------------------


def test_problems_have_names_of_their_own_and_fit_the_time():
    problems = all_problems()
    assert len({problem.name for problem in problems}) == len(problems)
    assert sum(len(problem.candidates) for problem in problems) <= 600
    for one in problems:
        assert all(set(candidate) == set(one.when) for candidate in one.candidates)


COMPILED = 4  # of so many problems one is compiled, too
OFFLINE = f"""
from dataclasses import replace
from kernels.gate.offline_launch import recording_launches
from kernels.tuner.problems import all_problems
from kernels.tuner.pruning import check_all, launch_offline

if __name__ == "__main__":
    problems = [replace(one, candidates=one.candidates[-1:], shapes=one.shapes[:1])
                for one in all_problems()]
    for problem in problems:
        launched = launch_offline(problem, problem.candidates[0], 90, recording_launches)
        print("launched", len(launched), "by", problem.name)
    kept = check_all(problems[::{COMPILED}], 90, 500, print)
    print("kept", sum(map(len, kept.values())))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_problem_s_conditions_meet_its_launches(tmp_path: Path):
    """A condition that no launch looks up is an error, wherever a candidate is compiled."""
    script = tmp_path / "offline.py"
    script.write_text(OFFLINE)
    cache = str(tmp_path / "cache")
    done = run_python(str(script), TRITON_CACHE_DIR=cache, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "NotCompiled" not in done.stdout, done.stdout
    assert "not reached" not in done.stdout, done.stdout
    problems = all_problems()
    assert done.stdout.count("launched ") == len(problems)
    assert "launched 0 by" not in done.stdout
    assert f"{len(problems[::COMPILED])} candidates compiled" in done.stdout

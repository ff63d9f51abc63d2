"""The tuning table: which row wins, how the tuner chooses, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this machine")

from kernels import tuning
from kernels.bench.row import Call
from kernels.bench.timing import Run
from kernels.offline import Figures
from kernels.tune import record
from kernels.tuner.problem import Problem, Shape
from kernels.tuner.problems import all_problems
from kernels.tuner.pruning import resident_blocks, why_dropped
from kernels.tuner.search import Bench, Choice, choose, choose_all
from kernels.tuning import Row, Tuning, lookup, trying
from kernels.tuning_writer import merged, write_table
from tests.kernels.own_process import ROOT, run_python

ENVIRONMENT = {"arch": 90, "date": "2026-01-01T00:00:00Z", "device": "NVIDIA H200"}


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


# --- looking up -----------------------------------------------------------------------------------


def test_the_first_row_that_applies_wins():
    rows = (
        Row("k", (90,), {"width": [1, 8], "format": "int4"}, Tuning({"B": 1}, 1, 1)),
        Row("k", (), {"width": [1, 8]}, Tuning({"B": 2}, 1, 1)),
        Row("k", (), {}, Tuning({"B": 3}, 1, 1)),
    )
    with trying(rows, 90):
        assert lookup("k", 90, width=8, format="int4").blocks["B"] == 1
        assert lookup("k", 80, width=8, format="int4").blocks["B"] == 2
        assert lookup("k", 90, width=1, format="bf16").blocks["B"] == 2
        assert lookup("k", 90, width=9).blocks["B"] == 3
        assert lookup("k", 90).blocks["B"] == 3  # a fact that is not told fulfils no condition


def test_a_lookup_without_a_row_names_what_it_looked_for():
    with pytest.raises(LookupError, match="no configuration of nothing for sm_80 with width 4"):
        lookup("nothing", 80, width=4)


def test_a_trial_comes_first_and_ends_with_its_block():
    usual = lookup("embedding", 90)
    row = Row("embedding", (), {}, Tuning({"BLOCK": 7}, 1, 1))
    with trying((row,), 80) as trial:
        assert tuning.architecture(torch.device("meta")) == 80
        assert trial.found == []
        assert lookup("embedding", 80).blocks["BLOCK"] == 7
        assert trial.found == [row]
    assert lookup("embedding", 90) == usual
    assert tuning.architecture(torch.device("meta")) == tuning.INTERPRETED_ARCH


def test_a_gpu_is_asked_what_it_is_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def capability(index: int) -> tuple[int, int]:
        asked.append(index)
        return 8, index % 10

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    for _ in range(3):
        assert tuning.architecture(torch.device("cuda", 96)) == 86
        assert tuning.architecture(torch.device("cuda", 99)) == 89
    assert asked == [96, 99]


def test_every_kernel_of_the_shipped_table_has_a_row_that_always_applies():
    kernels = {row.kernel for row in tuning.rows()}
    general = {row.kernel for row in tuning.rows() if not row.archs and not row.when}
    assert kernels - general <= {"move_blocks"}  # which cuts its pairs into calls of 1024


# --- writing --------------------------------------------------------------------------------------

TABLE = {
    "environments": [{"arch": 80, "device": "A"}, {"arch": 90, "device": "old"}],
    "rows": [
        {"kernel": "a", "blocks": {"B": 1}, "num_warps": 4, "num_stages": 1},
        {"kernel": "b", "archs": [90], "when": {"w": [1, 8]}, "num_warps": 2, "num_stages": 1},
        {"kernel": "b", "archs": [90], "when": {"w": 9}, "num_warps": 3, "num_stages": 1},
        {"kernel": "b", "archs": [80], "when": {"w": [1, 8]}, "num_warps": 5, "num_stages": 1},
        {"kernel": "b", "num_warps": 4, "num_stages": 1},
        {"kernel": "c", "num_warps": 4, "num_stages": 1},
    ],
}


def measured(kernel: str, when: Mapping[str, object], warps: int) -> Row:
    return Row(kernel, (90,), when, Tuning({}, warps, 2))


def test_measured_rows_go_before_their_kernel_s_others_and_replace_their_like():
    found = merged(TABLE, [measured("b", {"w": [1, 8]}, 8), measured("d", {}, 1)], ENVIRONMENT)
    lines = [
        (row["kernel"], row.get("archs"), row.get("when"), row["num_warps"])
        for row in found["rows"]
    ]
    assert lines == [
        ("a", None, None, 4),
        ("b", [90], {"w": [1, 8]}, 8),  # measured, in place of the old measurement
        ("b", [90], {"w": 9}, 3),
        ("b", [80], {"w": [1, 8]}, 5),
        ("b", None, None, 4),
        ("c", None, None, 4),
        ("d", [90], None, 1),
    ]
    assert found["environments"] == [{"arch": 80, "device": "A"}, ENVIRONMENT]
    assert TABLE["rows"][1]["num_warps"] == 2  # the given content is not changed


def test_a_written_table_reads_as_it_was_one_row_a_line(tmp_path: Path):
    path = tmp_path / "table.json"
    write_table(path, TABLE)
    assert json.loads(path.read_text()) == TABLE
    assert len(path.read_text().splitlines()) == 2 + len(TABLE["rows"]) + 3
    shipped = json.loads(tuning.TABLE.read_text())
    write_table(path, shipped)
    assert json.loads(path.read_text()) == shipped


def test_choices_are_recorded_and_the_rest_of_the_table_stays(tmp_path: Path):
    path = tmp_path / "table.json"
    write_table(path, TABLE)
    record([Choice("x", (measured("c", {}, 16),), 0.5), Choice("y", (), 1.0)], ENVIRONMENT, path)
    rows = [tuning.row_from(entry) for entry in json.loads(path.read_text())["rows"]]
    assert len(rows) == len(TABLE["rows"]) + 1
    assert [row.tuning.num_warps for row in rows if row.kernel == "c"] == [16, 4]
    assert rows[-2].archs == (90,)


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


OFFLINE = """
from dataclasses import replace
from kernels.tuner.problems import all_problems
from kernels.tuner.pruning import check_all

if __name__ == "__main__":
    problems = [replace(one, candidates=one.candidates[-1:], shapes=one.shapes[:1])
                for one in all_problems()]
    kept = check_all(problems, 90, 500, print)
    print("kept", sum(map(len, kept.values())), "of", len(problems))
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
    assert f"{len(all_problems())} candidates compiled" in done.stdout

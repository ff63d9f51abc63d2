"""The benchmark's arithmetic, its time budget and its output; rows run in tests/kernels/gpu."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this machine")

from kernels.bench.attention_rows import DECODE_FULL, PREFILL_FULL
from kernels.bench.paged import Step, log_uniform, tensors
from kernels.bench.report import costs, document, table
from kernels.bench.row import Call, Contender, Goal, Limit, Limits, Row, outcome_of, spread
from kernels.bench.suite import NO_KERNEL, Machine, all_rows, run_row, run_rows
from kernels.bench.timing import HostTimer, Run, measure_limits, sets_for
from tests.kernels.own_process import run_python

LIMITS = Limits(copy=4e12, product=8e14)
MIB = 1 << 20


class ScriptedTimer:
    """A call returns its own time in microseconds."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def ready(self, calls: Sequence[Call], captured: bool) -> Run:
        return Run(calls[0], len(calls))

    def measure(self, runs: Mapping[str, Run], seconds: float) -> dict[str, list[float]]:
        self.shares.append(seconds)
        return {name: [float(str(run.start()))] * 3 for name, run in runs.items()}


def contender(name: str, microseconds: float) -> Contender:
    return Contender(name, lambda device, sets: [lambda: microseconds] * sets)


def row(*contenders: Contender, goal: Goal | None = None, limit: Limit = Limit.COPY) -> Row:
    return Row(
        number=9,
        name="linear",
        nbytes=400_000_000,
        operations=80_000_000_000,
        limit=limit,
        goal=goal or Goal(),
        contenders=contenders,
    )


def machine(timer: ScriptedTimer | HostTimer) -> Machine:
    return Machine(torch.device("cpu"), timer, LIMITS, cache_bytes=60 * MIB)


def refuses(device: torch.device, sets: int) -> list[Call]:
    raise NotImplementedError("not installed")


def breaks(device: torch.device, sets: int) -> list[Call]:
    raise TypeError("plan() got an unexpected keyword")


def test_decode_reads_the_cache_once():
    step = {name: step for _, name, step, _ in DECODE_FULL}
    plain = step["decode B32 KV4096"]
    assert plain.cache_bytes == 32 * 4096 * 2 * 8 * 128 * 2 == 536_870_912
    assert plain.nbytes == plain.cache_bytes + 2 * 32 * 32 * 128 * 2
    assert plain.operations == 4 * 32 * 4096 * 32 * 128
    quantised = step["decode B32 KV4096 fp8"]
    assert quantised.cache_bytes == 32 * 4096 * 2 * 8 * (128 + 4)  # a float32 scale a slot and head


def test_prefill_counts_what_the_mask_leaves():
    steps = [step for _, _, step, _ in PREFILL_FULL]
    assert steps[0].operations == 4 * (8192 * 8193 // 2) * 32 * 128
    assert steps[2].operations == 4 * sum(range(14337, 16385)) * 32 * 128
    assert Step((5,), queries=3, heads=1, kv_heads=1, head_dim=1).operations == 4 * (3 + 4 + 5)


def test_a_ragged_batch_is_the_same_every_time_and_within_its_bounds():
    lengths = log_uniform(32, 128, 16384)
    assert lengths == log_uniform(32, 128, 16384)
    assert 128 <= min(lengths) < 400
    assert 8000 < max(lengths) <= 16384


def test_pages_are_shuffled_and_no_page_has_two_owners():
    given = tensors(Step((70, 33, 1), heads=4, kv_heads=2, head_dim=16), torch.device("cpu"))
    assert given.cache.shape == (4, 2, 2, 64, 16)
    owned = [*given.pages[0, :2].tolist(), given.pages[1, 0].item(), given.pages[2, 0].item()]
    assert sorted(owned) == [0, 1, 2, 3]
    assert given.starts.tolist() == [0, 1, 2, 3]


def test_every_row_of_the_list_has_a_floor_and_our_own_kernel_first():
    rows = all_rows()
    assert {row.number for row in rows} == set(range(1, 12))
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.contenders[0].name == "quire" for row in rows)
    floors = {row.name: 1e6 * row.floor(Limits(4.3e12, 7.9e14)) for row in rows}
    assert floors["decode B32 KV4096"] == pytest.approx(125, rel=0.01)
    assert floors["linear bf16 M=1 4096x4096"] == pytest.approx(7.8, rel=0.01)
    assert floors["linear int8 M=1 8192x8192"] == pytest.approx(15.6, rel=0.01)
    assert floors["sample greedy 128x131072"] == pytest.approx(15.6, rel=0.01)


def test_an_outcome_is_a_rate_and_a_fraction_of_the_limit():
    own = contender("quire", 125.0)
    found = outcome_of(row(own), "quire", [120.0, 125.0, 200.0], LIMITS, cold=True)
    assert found.microseconds == 125.0
    assert found.gigabytes_per_second == pytest.approx(3200)
    assert found.teraflops_per_second == pytest.approx(640)
    assert found.fraction == pytest.approx(0.8)  # 100 us of 125
    assert outcome_of(
        row(own, limit=Limit.PRODUCT), "quire", [125.0], LIMITS, cold=True
    ).fraction == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("goal", "reached"),
    [
        (Goal(microseconds=125), True),
        (Goal(microseconds=124), False),
        (Goal(fraction=0.79), True),
        (Goal(fraction=0.81), False),
        (Goal(), None),
    ],
)
def test_a_goal_is_for_our_own_kernel(goal: Goal, reached: bool | None):
    both = row(contender("quire", 125.0), contender("torch", 1.0), goal=goal)
    assert outcome_of(both, "quire", [125.0], LIMITS, cold=True).reached is reached
    assert outcome_of(both, "torch", [1.0], LIMITS, cold=True).reached is None


def test_spread_is_the_tenth_and_the_ninetieth_percentile():
    assert spread([float(value) for value in range(101)]) == (10.0, 90.0)
    assert spread([3.0]) == (3.0, 3.0)


def test_inputs_rotate_until_they_have_left_the_cache():
    assert sets_for(600 * MIB, 60 * MIB) == (1, True)
    assert sets_for(30 * MIB, 60 * MIB) == (6, True)
    assert sets_for(1 * MIB, 60 * MIB) == (64, False)  # cannot be cold, and says so
    assert sets_for(1, 0) == (1, True)


def test_limits_are_bytes_read_and_written_and_operations():
    class Fixed(ScriptedTimer):
        def measure(self, runs: Mapping[str, Run], seconds: float) -> dict[str, list[float]]:
            return {"copy": [1.0, 2.0, 50.0], "product": [4.0]}

    limits = measure_limits(torch.device("cpu"), Fixed(), copy_bytes=1 << 20, size=8)
    assert limits.copy == pytest.approx(2 * (1 << 20) / 2e-6)
    assert limits.product == pytest.approx(2 * 8**3 / 4e-6)


def test_what_cannot_run_is_told_and_costs_the_others_nothing():
    mixed = row(
        contender("quire", 10.0),
        Contender("quire batch-invariant", breaks),
        Contender("flashinfer", refuses),
        Contender("other", breaks),
    )
    outcomes, skipped = run_row(mixed, machine(ScriptedTimer()), 1.0)
    assert [outcome.contender for outcome in outcomes] == ["quire"]
    assert [(reason.contender, reason.failed) for reason in skipped] == [
        ("quire batch-invariant", True),
        ("flashinfer", False),
        ("other", False),
    ]
    assert skipped[1].why == "not installed"
    assert skipped[2].why.startswith("TypeError: plan()")


def test_time_is_shared_out_and_what_gets_none_is_told():
    now = 0.0
    timer = ScriptedTimer()

    def tick(line: str) -> None:
        nonlocal now
        now += 40.0

    rows = [replace(row(contender("quire", 5.0)), name=name) for name in "abcd"]
    outcomes, skipped = run_rows(rows, machine(timer), 100.0, tick, clock=lambda: now)
    assert [outcome.name for outcome in outcomes] == ["a", "b", "c"]
    assert timer.shares == [25.0, 20.0, 10.0]
    assert [(reason.row, reason.why) for reason in skipped] == [("d", "the time is over")]


def test_the_report_names_everything():
    both = row(
        contender("quire", 125.0),
        contender("quire batch-invariant", 150.0),
        goal=Goal(microseconds=130),
    )
    outcomes, _ = run_row(both, machine(ScriptedTimer()), 1.0)
    lines = table(outcomes).splitlines()
    assert lines[0].split()[:4] == ["row", "what", "who", "us"]
    assert "125.0" in lines[1] and "80% of copy" in lines[1] and lines[1].endswith("yes")
    assert costs(outcomes) == ["batch-invariant linear: 1.20 times the time"]
    content = json.loads(json.dumps(document({"device": "x"}, LIMITS, outcomes, [NO_KERNEL])))
    assert content["limits"]["copy_gigabytes_per_second"] == 4000
    assert content["rows"][0]["fraction"] == pytest.approx(0.8)
    assert content["skipped"][0]["row"] == "mixture of experts"


def run_command(*options: str, interpret: bool) -> subprocess.CompletedProcess[str]:
    switch = {"TRITON_INTERPRET": "1"} if interpret else {}
    return run_python("-m", "kernels.bench", *options, **switch)


def test_the_command_prints_a_table_and_json_and_keeps_it(tmp_path: Path):
    done = run_command("--tiny", "--only", "rmsnorm", "--results", str(tmp_path), interpret=True)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout.splitlines()[-1])
    assert [outcome["contender"] for outcome in content["rows"]] == ["quire", "torch add, rms_norm"]
    assert set(content["environment"]) == {"date", "device", "torch", "triton", "python"}
    [kept] = tmp_path.glob("cpu-*.json")
    assert json.loads(kept.read_text()) == content
    assert "no such kernel yet" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_times_nothing_without_a_gpu():
    done = run_command(interpret=False)
    assert done.returncode == 2
    assert "there is no GPU" in done.stderr


OFFLINE = """
import torch
from kernels.bench.suite import all_rows
from kernels.gate.offline_launch import compiling_launches
from kernels.tuner.pruning import resident_blocks
from kernels.tuning import trying

for row in all_rows():
    for contender in row.contenders:
        if contender.own:
            with trying((), 90), compiling_launches(90) as launches:
                for call in contender.make(torch.device("meta"), 1):
                    call()
            for launch in launches:
                if launch.figures.spills or not resident_blocks(launch.figures, 90):
                    print("BAD", row.name, contender.name, launch)
            print("ran", row.name, contender.name, len(launches))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_row_compiles_at_full_size_for_an_h200(tmp_path: Path):
    done = run_python("-c", OFFLINE, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "BAD" not in done.stdout, done.stdout
    own = sum(contender.own for row in all_rows() for contender in row.contenders)
    assert done.stdout.count("ran ") == own

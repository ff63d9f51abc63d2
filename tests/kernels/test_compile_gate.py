"""The compile gate: what it refuses, what it calls a difference, and the shipped kernels."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="no Triton for this machine")

import triton

from kernels.compile_gate import problems_of, sampled
from kernels.gate.baseline import Difference, differences, read_baseline, review, write_baseline
from kernels.gate.cases import Job
from kernels.gate.offline import Figures
from kernels.gpu.compile_case import ASYNC_COPY, FLOAT64, WARP_SPECIALIZED, WGMMA, CompileCase
from tests.kernels.own_process import run_python

NEXT_TRITON = sorted(Path(sys.prefix).glob("triton-*"))

FIGURES = Figures(
    warps=4,
    registers=128,
    stack=0,
    local=0,
    spills=0,
    shared=73728,
    wgmma=4,
    mma=0,
    async_copies=36,
    bulk_copies=0,
    vector_loads=2,
    doubles=0,
)

KERNELS = """
import triton
import triton.language as tl


@triton.jit
def product(a, b, c, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, s = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for start in tl.range(0, k, K):
        left = tl.load(a + m[:, None] * k + start + s[None, :])
        right = tl.load(b + (start + s)[:, None] * N + n[None, :])
        total = tl.dot(left, right, total)
    tl.store(c + m[:, None] * N + n[None, :], total)


@triton.jit
def scaled(x, y, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y + i, (tl.load(x + i, i < n) * FACTOR).to(tl.float32), i < n)
"""

LAUNCHERS = """
from kernels.gpu.compile_case import WGMMA, CompileCase
from sample import bodies


def run(x, y):
    bodies.scaled[(1,)](x, y, 1, 128)
    bodies.product[(1,)](x, y, y, 1, 16, 16, 16)


def compile_cases(arch):
    products = {"small": (64, 64, 64), "huge": (128, 256, 64), "thin": (16, 64, 64)}
    for name in PRODUCTS:
        yield CompileCase(
            name=f"product/{name}", fn=bodies.product,
            signature={"a": "*bf16", "b": "*bf16", "c": "*fp32", "k": "i32"},
            constexprs=dict(zip("MNK", products[name])), num_warps=4, num_stages=3,
            wants=frozenset([WGMMA]), aligned=frozenset("abck"))
    yield CompileCase(
        name="scaled/plain", fn=bodies.scaled, signature={"x": "*fp32", "y": "*fp32", "n": "i32"},
        constexprs={"B": 512}, num_warps=4, num_stages=3, aligned=frozenset("xy"))
"""


class Sample:
    """A package of two kernels, as the gate sees it in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.baseline = folder / "baseline.json"
        (folder / "sample").mkdir()
        (folder / "sample" / "__init__.py").touch()
        self.write(factor="2.0", products=["small"])

    def write(self, factor: str, products: list[str], launchers: str = LAUNCHERS) -> None:
        bodies = KERNELS.replace("FACTOR", factor)
        (self.folder / "sample" / "bodies.py").write_text(bodies)
        launchers = launchers.replace("PRODUCTS", repr(products))
        (self.folder / "sample" / "launchers.py").write_text(launchers)

    def gate(self, *options: str) -> tuple[int, str]:
        own = ["--package", "sample", "--baseline", str(self.baseline), "--no-cache"]
        return gate(*own, *options, paths=[self.folder])


def gate(*options: str, paths: list[Path] | None = None) -> tuple[int, str]:
    """Exit status and output."""
    folders = os.pathsep.join(map(str, paths or []))
    done = run_python("-m", "kernels.compile_gate", *options, PYTHONPATH=folders)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return Sample(tmp_path)


def case(**changes: object) -> CompileCase:
    plain = CompileCase("product/a", None, {}, {}, num_warps=4, num_stages=3)
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("figures", "arch", "problem"),
    [
        (FIGURES, 90, None),
        (replace(FIGURES, spills=7, stack=24), 80, "spills 7 times (24 bytes)"),
        (replace(FIGURES, stack=24), 80, None),
        (replace(FIGURES, doubles=2), 90, "mentions 64-bit floats 2 times"),
        (replace(FIGURES, shared=227 * 1024), 90, None),
        (replace(FIGURES, shared=227 * 1024 + 16), 90, "shared memory"),
        (replace(FIGURES, shared=163 * 1024 + 16), 80, "shared memory"),
        (replace(FIGURES, wgmma=0), 90, "has no wgmma"),
        (replace(FIGURES, wgmma=0), 80, None),
        (replace(FIGURES, async_copies=0), 90, "has no async_copy"),
        (replace(FIGURES, async_copies=0, bulk_copies=2), 90, None),
    ],
)
def test_bad_machine_code_is_told(figures: Figures, arch: int, problem: str | None) -> None:
    found = problems_of(case(wants=frozenset([WGMMA, ASYNC_COPY])), arch, figures)
    assert (not found) if problem is None else (len(found) == 1 and problem in found[0])


def test_a_kernel_that_needs_64_bit_floats_says_so() -> None:
    needing = case(wants=frozenset([FLOAT64]))
    assert problems_of(needing, 80, replace(FIGURES, doubles=39)) == []
    assert problems_of(needing, 90, FIGURES) == ["has no float64"]


def test_specialised_warps_show_in_their_number() -> None:
    wanting = case(wants=frozenset([WARP_SPECIALIZED]))
    assert problems_of(wanting, 90, FIGURES) == ["has no warp_specialized"]
    assert problems_of(wanting, 90, replace(FIGURES, warps=12)) == []


def test_a_difference_reads_like_a_review(tmp_path: Path) -> None:
    was = {"a sm_90": {"registers": 96, "shared": 1}, "b sm_90": {"registers": 8}}
    now = {"a sm_90": {"registers": 104, "shared": 1}, "c sm_90": {"registers": 8}}
    found = list(differences(was, now))
    assert found == [
        Difference("a sm_90", "registers", "96", "104"),
        Difference("b sm_90", "case", "held", "gone"),
        Difference("c sm_90", "case", "-", "new"),
    ]
    assert review(found).splitlines()[:2] == [
        "case     figure     was   is",
        "a sm_90  registers  96    104",
    ]
    baseline = tmp_path / "baseline.json"
    write_baseline(baseline, "3.6.0", was)
    assert read_baseline(baseline, "3.6.0") == was
    assert len(baseline.read_text().splitlines()) == 4  # a line a case
    with pytest.raises(ValueError, match=r"written with triton 3\.6\.0; this is 3\.7\.1"):
        read_baseline(baseline, "3.7.1")


def test_the_gate_passes_what_it_wrote_and_names_what_changed(sample: Sample) -> None:
    status, output = sample.gate("--write")
    assert status == 0, output
    held = json.loads(sample.baseline.read_text())["cases"]
    assert sorted(held) == [
        f"launchers {name} sm_{arch}"
        for name in ("product/small", "scaled/plain")
        for arch in sorted((80, 90, 89, 100), key=str)
    ]
    assert held["launchers product/small sm_90"]["wgmma"] > 0
    assert held["launchers product/small sm_80"]["mma"] > 0
    assert "launchers                   8 cases" in output  # with those of the smoke test

    sample.write(factor="tl.exp2(tl.load(x + i + n, i < n))", products=["small"])
    status, output = sample.gate("--arch", "sm_90")
    assert status == 1
    assert "launchers scaled/plain sm_90  registers" in output
    assert "product/small" not in output


def test_the_gate_refuses_bad_kernels(sample: Sample) -> None:
    sample.write(factor="tl.full((), 2.1, tl.float64)", products=["small", "huge", "thin"])
    status, output = sample.gate("--write", "--arch", "sm_90")
    assert status == 1
    assert "product/huge sm_90: spills" in output
    assert "product/thin sm_90: has no wgmma" in output
    assert "scaled/plain sm_90: mentions 64-bit floats" in output
    assert "product/small sm_90:" not in output
    sample.write(factor="no_such_name", products=["small"])
    status, output = sample.gate("--arch", "sm_90", "--only", "scaled", "--smoke")
    assert status == 1
    assert "does not compile" in output
    assert "no_such_name" in output


def test_no_kernel_is_launched_that_the_gate_does_not_see(sample: Sample) -> None:
    sample.write(factor="2.0", products=[])
    status, output = sample.gate()
    assert status == 1
    assert "sample.launchers launches product without a case of it" in output
    hidden = LAUNCHERS.replace("compile_cases", "other_cases")
    sample.write(factor="2.0", products=["small"], launchers=hidden)
    status, output = sample.gate()
    assert status == 1
    assert "sample.launchers launches kernels and has no compile_cases" in output


def job_of(line: str) -> Job:
    module, name, arch = line.split(" ")
    return Job(module, name, int(arch.removeprefix("sm_")))


def test_what_was_not_changed_is_believed_and_what_was_is_compiled(sample: Sample) -> None:
    """The baseline's figures are made wrong: only those of another source are found out."""
    assert sample.gate("--write")[0] == 0
    held = json.loads(sample.baseline.read_text())["cases"]
    for row in held.values():
        row["registers"] = 1
    write_baseline(sample.baseline, triton.__version__, held)
    assert not any(sampled(job_of(name)) for name in held)
    assert sample.gate("--changed")[0] == 0

    sample.write(factor="4.0", products=["small"])
    status, output = sample.gate("--changed")
    assert status == 1
    assert re.search(r"scaled/plain sm_90 +source", output)
    assert re.search(r"scaled/plain sm_90 +registers", output)
    assert "product/small" not in output


def test_one_unchanged_case_in_so_many_is_compiled_all_the_same() -> None:
    jobs = [Job("kernels.gpu.linear", f"case/{number}", 90) for number in range(3200)]
    chosen = [job for job in jobs if sampled(job)]
    assert 60 < len(chosen) < 140
    assert chosen == [job for job in jobs if sampled(job)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_shipped_kernels_are_the_baseline_s() -> None:
    """`make kernels-check` compiles all of them; here those that the baseline is not of."""
    status, output = gate("--changed")
    assert status == 0, output


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not NEXT_TRITON, reason="no other version of Triton is installed beside")
def test_the_shipped_kernels_compile_with_the_next_triton() -> None:
    status, output = gate("--smoke", "--arch", "sm_90", paths=[NEXT_TRITON[-1]])
    assert status == 0, output
    assert f"triton {NEXT_TRITON[-1].name.removeprefix('triton-')}" in output

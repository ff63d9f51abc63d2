"""Machine code for a GPU that is not there: compiling a case and reading its figures.

Triton carries its own assembler and disassembler, so what a kernel takes of a multiprocessor, and
which instructions it became, is known on any Linux machine. Nothing here may run where Triton
interprets kernels, for then there is nothing to compile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.gpu.compile_case import (
    ASYNC_COPY,
    FLOAT64,
    TMA,
    WARP_SPECIALIZED,
    WGMMA,
    CompileCase,
)
from kernels.gpu.interpreter import interpreted

WARP_SIZE = 32
DIVISIBLE = 16  # what Triton means by an aligned argument
KIB = 1024
# Bytes of shared memory that one block may take (CUDA C++ programming guide, table of compute
# capabilities): the multiprocessor's, less what the driver keeps.
SHARED_LIMITS = {80: 163 * KIB, 86: 99 * KIB, 89: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB}

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_SPILL = re.compile(r"\b(?:STL|LDL)\b")
_PATTERNS = {
    "wgmma": re.compile(r"\bwgmma\.mma_async\b"),
    "mma": re.compile(r"\bmma\.sync\b"),
    "async_copies": re.compile(r"\bcp\.async\.c[ag]\."),
    "bulk_copies": re.compile(r"\bcp\.async\.bulk\.tensor\b"),
    "vector_loads": re.compile(r"\bld\.global\S*\.v[248]\."),
    "doubles": re.compile(r"\.f64\b"),
}


class NotCompiled(Exception):
    """A case that the compiler refuses; the text says which, and why."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one compiled kernel takes, and the instructions in its text that matter.

    Instructions are counted where they stand, not how often they run.
    """

    warps: int  # of a block; more than were asked for where the compiler specialised some
    registers: int  # of a thread
    stack: int  # bytes of a thread
    local: int  # bytes of a thread
    spills: int  # loads from and stores to either of the two
    shared: int  # bytes of a block; all of Triton's is dynamic
    wgmma: int
    mma: int
    async_copies: int
    bulk_copies: int
    vector_loads: int
    doubles: int  # mentions of 64-bit floats

    def row(self) -> dict[str, int]:
        return asdict(self)


def wanted_but_missing(case: CompileCase, figures: Figures) -> list[str]:
    """The names in ``case.wants`` that the machine code does not show."""
    shown = {
        WGMMA: figures.wgmma > 0,
        ASYNC_COPY: figures.async_copies + figures.bulk_copies > 0,
        TMA: figures.bulk_copies > 0,
        WARP_SPECIALIZED: figures.warps > case.num_warps,
        FLOAT64: figures.doubles > 0,
    }
    return sorted(name for name in case.wants if not shown[name])


def source_of(case: CompileCase) -> ASTSource:
    """The case as Triton takes it: every argument typed, in the order of the function."""
    names = list(case.fn.arg_names)
    strangers = (set(case.signature) | set(case.constexprs) | case.aligned) - set(names)
    untyped = set(names) - set(case.signature) - set(case.constexprs)
    if strangers or untyped:
        raise NotCompiled(
            f"{case.name}: the function has no argument {sorted(strangers)}, and the case says"
            f" nothing of {sorted(untyped)}"
        )
    return ASTSource(
        fn=case.fn,
        signature={
            name: "constexpr" if name in case.constexprs else case.signature[name] for name in names
        },
        constexprs={(names.index(name),): value for name, value in case.constexprs.items()},
        attrs={(names.index(name),): [["tt.divisibility", DIVISIBLE]] for name in case.aligned},
    )


def compile_case(case: CompileCase, arch: int) -> Figures:
    """Compiles for ``arch`` (compute capability times ten). Raises NotCompiled."""
    if interpreted():
        raise NotCompiled("Triton interprets kernels in this process; compile in another")
    try:
        kernel = triton.compile(
            source_of(case),
            target=GPUTarget("cuda", arch, WARP_SIZE),
            options={"num_warps": case.num_warps, "num_stages": case.num_stages},
        )
    except NotCompiled:
        raise
    except Exception as error:  # whatever the compiler raises is a finding about this case
        told = str(error).strip().splitlines()[-1:] or [""]
        raise NotCompiled(
            f"{case.name} for sm_{arch}: {type(error).__name__}: {told[0]}"
        ) from error
    return read_figures(kernel.asm, kernel.metadata)


def read_figures(asm: Mapping[str, Any], metadata: Any) -> Figures:
    """The figures of a compiled kernel, as Triton holds it."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(asm["cubin"])
        report = _tool(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin)
        found = _RESOURCES.search(report)
        if found is None:
            raise NotCompiled(f"no resource usage in {report!r}")
        registers, stack, local = map(int, found.groups())
        spills = 0
        if stack or local:
            spills = len(_SPILL.findall(_tool(triton.knobs.nvidia.nvdisasm.path, "-c", cubin)))
    counts = {name: len(pattern.findall(asm["ptx"])) for name, pattern in _PATTERNS.items()}
    return Figures(
        warps=metadata.num_warps,
        registers=registers,
        stack=stack,
        local=local,
        spills=spills,
        shared=metadata.shared,
        **counts,
    )


def _tool(path: str, flag: str, cubin: Path) -> str:
    done = subprocess.run([path, flag, str(cubin)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotCompiled(f"{path} {flag}: {done.stderr.strip()}")
    return done.stdout

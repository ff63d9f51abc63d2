"""The C files of the native kernels, compiled as setup.py does, by other compilers or with more
flags."""

from __future__ import annotations

import platform
import runpy
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kernels.cpu.native.library import FILE

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "kernels" / "cpu" / "csrc"
DRIVER = Path(__file__).with_name("driver.c")
_SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


def compile_objects(
    compiler: str, folder: Path, machine: str | None = None, *, extra: Sequence[str] = ()
) -> list[str]:
    """Object files in ``folder`` of all that a ``machine`` has, by default this one."""
    levels = _SETUP["LEVELS"].get(machine or platform.machine(), _SETUP["ANY_MACHINE"])

    def compiled(name: str) -> str:
        return compile_one(compiler, folder, name, *levels.get(name, ()), *extra)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, ("levels", "pool", *levels)))


def compile_one(compiler: str, folder: Path, name: str, *flags: str) -> str:
    """One file. Nothing that a compiler warns of is let pass."""
    made = str(folder / f"{name}.o")
    common = (*_SETUP["COMMON"], "-Werror", *flags)
    run([compiler, *common, "-c", str(SOURCES / f"{name}.c"), "-o", made])
    return made


def run(command: Sequence[str], seconds: float = 300) -> str:
    """What a command says that must end with 0."""
    done = subprocess.run(command, text=True, capture_output=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def link_driver(compiler: str, folder: Path, linked: Sequence[str], *flags: str) -> str:
    """driver.c, which runs every operation on fixed inputs, as a program."""
    made = str(folder / f"driver-{compiler}")
    common = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}")
    run([compiler, *common, *flags, str(DRIVER), *linked, "-o", made])
    return made


def run_driver(command: Sequence[str]) -> dict[str, dict[str, str]]:
    """By level, each case's hash; the same from any number of threads."""
    told: dict[str, dict[str, str]] = {}
    for line in run(command, 600).splitlines():
        level, case, made = line.split()
        assert told.setdefault(level, {}).setdefault(case, made) == made, f"{level} {case}: threads"
    return told


def results_here(folder: Path) -> dict[str, dict[str, str]]:
    """What the levels of the installed library come to on this machine."""
    library = Path(FILE)
    return run_driver([link_driver("gcc", folder, [str(library), f"-Wl,-rpath,{library.parent}"])])

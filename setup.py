"""Builds the native kernels of a CPU beside the package, where there is a C compiler.

All else that there is to say of the package is in pyproject.toml. The library is plain C with a C
interface, loaded with ctypes: it belongs to no version of Python, so a wheel needs one a platform.

The compiler is the one that the variable CC names, or Python's own, or cc. Where there is none, it
is ziglang, a package of PyPI that brings a whole one, if that is installed beside Python.
CC=ziglang takes that in any case: what it makes asks for no newer glibc than the oldest that a
wheel is for.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("kernels", "cpu", "csrc")
# No products and sums are fused but where the code says so: results do not depend on a compiler.
COMMON = (
    *("-std=gnu11", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
# By the kernel's word for a machine: its levels, each a file, and the flags of each file that needs
# any. The portable one takes half as long to compile for the same speed where -O2 does for it.
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
LEVELS = {
    "x86_64": {"portable": ("-O2",), "avx2": AVX2, "avx512": (*AVX2, *AVX512)},
    "aarch64": {"portable": ("-O2",), "neon": ()},
}
ANY_MACHINE = {"portable": ("-O2",)}
ZIG = "ziglang"
# glibc's of the oldest systems that a wheel is for. Without a target zig compiles for the processor
# that it runs on.
OLDEST_GLIBC = "2.28"


def levels() -> dict[str, tuple[str, ...]]:
    return LEVELS.get(platform.machine(), ANY_MACHINE)


def zig() -> list[str] | None:
    """ziglang's compiler. In isolation pip hides it from this Python, but not from another."""
    python = [sys.executable, "-I"]
    found = subprocess.run([*python, "-c", f"import {ZIG}"], capture_output=True, check=False)
    if found.returncode != 0:
        return None
    target = f"{platform.machine()}-linux-gnu.{OLDEST_GLIBC}"
    return [*python, "-m", ZIG, "cc", "-target", target, "-s"]


class BuildKernels(build_ext):
    """Each level's file with flags of its own; without a compiler nothing is built."""

    def build_extension(self, ext: Extension) -> None:
        out = Path(self.get_ext_fullpath(ext.name))
        command = self.compiler_command()
        self.compiler.set_executables(compiler_so=command, linker_so=[*command, "-shared"])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [made for each in pool.map(self.compile_file, ext.sources) for made in each]
        out.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(out), extra_postargs=["-pthread", "-lm"])

    def compiler_command(self) -> list[str]:
        """The compiler alone: the flags that Python itself was built with are not for this."""
        named = os.environ.get("CC")
        if named is not None and named != ZIG:
            return shlex.split(named)
        for name in (self.compiler.compiler_so[0], "cc"):
            if shutil.which(name) and named is None:
                return [name]
        command = zig()
        if command is None:
            raise CompileError(f"there is no C compiler (cc), and no {ZIG} either")
        return command

    def compile_file(self, source: str) -> list[str]:
        flags = levels().get(Path(source).stem, ())
        made: list[str] = self.compiler.compile(
            [source], output_dir=self.build_temp, extra_postargs=[*COMMON, *flags]
        )
        return made

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"


class AnyPython(bdist_wheel):
    """A wheel for every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform_name = super().get_tag()
        return "py3", "none", platform_name


if __name__ == "__main__":  # tests read the flags
    setup(
        ext_modules=[
            Extension(
                "kernels.cpu.native.quire_cpu",
                [str(SOURCES / f"{name}.c") for name in ("levels", "pool", *levels())],
                depends=[str(path) for path in sorted(SOURCES.glob("*.[hi]*"))],
                optional=True,
            )
        ],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython},
    )

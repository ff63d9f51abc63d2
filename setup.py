"""Builds the native kernels of a CPU beside the package, where there is a C compiler.

All else that there is to say of the package is in pyproject.toml. The library is plain C with a C
interface, loaded with ctypes: it belongs to no version of Python, so a wheel needs one a platform.
"""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("kernels", "cpu", "csrc")
# No products and sums are fused but where the code says so: results do not depend on a compiler.
COMMON = (
    *("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
LEVELS = {"avx2": ("-mavx2", "-mfma", "-mf16c")}  # flags of the files that need any


def sources() -> list[str]:
    names = ["levels", "pool", "portable"]
    if platform.machine() in ("x86_64", "AMD64"):
        names.append("avx2")
    return [str(SOURCES / f"{name}.c") for name in names]


class BuildKernels(build_ext):
    """Each level's file with flags of its own; without a compiler nothing is built."""

    def build_extension(self, ext: Extension) -> None:
        out = Path(self.get_ext_fullpath(ext.name))
        # The compiler alone: the flags that Python itself was built with are not for this.
        command = self.compiler.compiler_so[:1]
        self.compiler.set_executables(compiler_so=command, linker_so=[*command, "-shared"])
        objects = [
            made
            for source in ext.sources
            for made in self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                extra_postargs=[*COMMON, *LEVELS.get(Path(source).stem, ())],
                depends=ext.depends,
            )
        ]
        out.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(out), extra_postargs=["-pthread", "-lm"])

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"


class AnyPython(bdist_wheel):
    """A wheel for every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform_name = super().get_tag()
        return "py3", "none", platform_name


setup(
    ext_modules=[
        Extension(
            "kernels.cpu.native.quire_cpu",
            sources(),
            depends=[str(path) for path in sorted(SOURCES.glob("*.[hi]*"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython},
)

"""Launching without a GPU: what a launcher would run is compiled, as it would be, and not run.

A launcher is called with tensors on the device "meta", which have shapes and no memory. Triton
then specialises and compiles just as on the GPU, into the same cache, so that the real launch
finds its machine code there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from kernels.gpu.interpreter import interpreted
from kernels.offline import WARP_SIZE, Figures, NotCompiled, read_figures


@dataclass(frozen=True, slots=True)
class Launch:
    kernel: str
    figures: Figures


class _NoDevice:
    """What Triton asks a driver for before it compiles."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_device(self) -> int:
        return -self._arch  # no number of a device: Triton keeps what it compiled by it

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, WARP_SIZE)


@contextmanager
def compiling_launches(arch: int) -> Iterator[list[Launch]]:
    """Inside, every launch is compiled for ``arch`` and noted in the list, and nothing runs.

    Raises NotCompiled where the compiler refuses a launch.
    """
    if interpreted():
        raise NotCompiled("Triton interprets kernels in this process; compile in another")
    launches: list[Launch] = []

    def compile_instead(*, fn: Any, compile: dict[str, Any], **_: object) -> bool:
        launches.append(_compiled(fn.jit_function, compile, arch))
        return True  # tells Triton that there is nothing left to do

    active, hook = driver._active, triton.knobs.runtime.jit_cache_hook
    driver.set_active(_NoDevice(arch))
    triton.knobs.runtime.jit_cache_hook = compile_instead
    try:
        yield launches
    finally:
        triton.knobs.runtime.jit_cache_hook = hook
        driver._active = active


def _compiled(function: JITFunction, facts: dict[str, Any], arch: int) -> Launch:
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(facts["specialization_data"])["options"].items()
    }
    source = ASTSource(function, facts["signature"], facts["constants"], facts["configs"][0])
    name = function.fn.__name__
    try:
        kernel = triton.compile(source, target=GPUTarget("cuda", arch, WARP_SIZE), options=options)
    except Exception as error:  # whatever the compiler raises is a finding about this launch
        raise NotCompiled(f"{name} for sm_{arch}: {type(error).__name__}: {error}") from error
    return Launch(name, read_figures(kernel.asm, kernel.metadata))

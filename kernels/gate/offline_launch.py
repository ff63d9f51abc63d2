"""Launching without a GPU: what a launcher would run is compiled, as it would be, and not run.

A launcher is called with tensors on the device "meta", which have shapes and no memory. Triton
then specialises and compiles just as on the GPU, into the same cache, so that the real launch
finds its machine code there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver

from kernels.gate.offline import WARP_SIZE, Figures, NotCompiled, read_figures
from kernels.gpu.interpreter import interpreted


@dataclass(frozen=True, slots=True)
class Launch:
    kernel: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class Form:
    """What machine code depends on: launches of one form share it.

    ``arguments`` are by name: a type, with ":16" where its value is known to be divisible by that,
    or "=" and the value that is compiled in.
    """

    kernel: str
    arguments: tuple[tuple[str, str], ...]
    num_warps: int
    num_stages: int


def form_of(source: ASTSource, num_warps: int, num_stages: int) -> Form:
    """The form of what would be compiled from ``source``."""
    arguments = []
    for index, name in enumerate(source.fn.arg_names):
        if (index,) in source.constants:
            value = source.constants[(index,)]
            arguments.append((name, f"={getattr(value, 'value', value)}"))
        else:
            known = "".join(f":{number}" for _, number in source.attrs.get((index,), ()))
            arguments.append((name, source.signature[name] + known))
    return Form(source.fn.fn.__name__, tuple(arguments), num_warps, num_stages)


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
    launches: list[Launch] = []
    with _launching(
        arch, lambda source, options: launches.append(_compiled(source, options, arch))
    ):
        yield launches


@contextmanager
def recording_launches(arch: int) -> Iterator[list[Form]]:
    """Inside, the form of every launch is noted in the list, and nothing is compiled or run."""
    forms: list[Form] = []

    def note(source: ASTSource, options: Mapping[str, Any]) -> None:
        forms.append(form_of(source, options["num_warps"], options["num_stages"]))

    with _launching(arch, note):
        yield forms


@contextmanager
def _launching(arch: int, do: Callable[[ASTSource, Mapping[str, Any]], None]) -> Iterator[None]:
    """Inside, ``do`` gets what a launch would compile, with Triton's options, instead of it."""
    if interpreted():
        raise NotCompiled("Triton interprets kernels in this process; compile in another")

    def instead(*, fn: Any, compile: dict[str, Any], **_: object) -> bool:
        source = ASTSource(
            fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0]
        )
        do(source, json.loads(compile["specialization_data"])["options"])
        return True  # tells Triton that there is nothing left to do

    active, hook = driver._active, triton.knobs.runtime.jit_cache_hook
    driver.set_active(_NoDevice(arch))
    triton.knobs.runtime.jit_cache_hook = instead
    try:
        yield
    finally:
        triton.knobs.runtime.jit_cache_hook = hook
        driver._active = active


def _compiled(source: ASTSource, told: Mapping[str, Any], arch: int) -> Launch:
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in told.items()
    }
    name = source.fn.fn.__name__
    try:
        kernel = triton.compile(source, target=GPUTarget("cuda", arch, WARP_SIZE), options=options)
    except Exception as error:  # whatever the compiler raises is a finding about this launch
        raise NotCompiled(f"{name} for sm_{arch}: {type(error).__name__}: {error}") from error
    return Launch(name, read_figures(kernel.asm, kernel.metadata))

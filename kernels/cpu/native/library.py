"""The native library: found, loaded, asked which levels run here; and its pool of threads.

It is plain C behind ctypes (csrc/), made by the project's own install. Where it is not there, or
cannot be loaded, NativeUnavailable says why as the end of a sentence. No torch.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kernels.cpu.native.structs import ARGUMENTS, Call, Step

FILE = Path(__file__).with_name("quire_cpu.so")


class NativeUnavailable(Exception):
    """Why no native kernels run here, as the end of a sentence."""


@cache
def library() -> ctypes.CDLL:
    """The library, its functions declared. Raises NativeUnavailable."""
    if not FILE.is_file():
        raise NativeUnavailable(
            "its kernels were not built: the installation found no C compiler (install one, or"
            " ziglang from PyPI, then install quire again)"
        )
    try:
        made = ctypes.CDLL(str(FILE))
    except OSError as error:
        raise NativeUnavailable(f"its kernels cannot be loaded: {error}") from error
    pointer, number, whole = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    for name, result, arguments in (
        ("qr_level_name", ctypes.c_char_p, (whole,)),
        ("qr_level", pointer, (ctypes.c_char_p,)),
        ("qr_struct_bytes", whole, (whole,)),
        ("qr_pool_new", pointer, (number, pointer)),
        ("qr_pool_free", None, (pointer,)),
        ("qr_run", None, (pointer, pointer, pointer, whole, ctypes.c_int32, pointer)),
    ):
        function = getattr(made, name, None)
        if function is None:
            raise NativeUnavailable(f"its kernels are of another version: there is no {name}")
        function.restype, function.argtypes = result, arguments
    structs: dict[int, type[ctypes.Structure]] = {-2: Step, -1: Call}
    structs |= {int(operation): struct for operation, struct in ARGUMENTS.items()}
    for operation, struct in structs.items():
        if made.qr_struct_bytes(operation) != ctypes.sizeof(struct):
            raise NativeUnavailable(
                f"its kernels are of another version: {struct.__name__} differs (install quire"
                " again)"
            )
    return made


def levels() -> tuple[str, ...]:
    """The levels that the library has, the best one first. Raises NativeUnavailable."""
    return tuple(_addresses(library()))


def levels_here() -> tuple[str, ...]:
    """Those that this processor runs, the best one first. Raises NativeUnavailable."""
    return tuple(name for name, address in _addresses(library()).items() if address)


@cache  # every program asks for its level
def _addresses(of: ctypes.CDLL) -> dict[str, int | None]:
    """Where the kernels of each level are, None for one that does not run here."""
    names: list[bytes] = []
    while (name := of.qr_level_name(len(names))) is not None:
        names.append(name)
    return {name.decode(): of.qr_level(name) for name in names}


@dataclass(frozen=True, slots=True)
class Level:
    """The kernels of one instruction level."""

    name: str
    address: int


def level(name: str) -> Level:
    """Raises NativeUnavailable for a level that there is not, or that this processor does not
    run."""
    if name not in levels():
        raise NativeUnavailable(f"there is no level {name!r}; there are {', '.join(levels())}")
    address = _addresses(library())[name]
    if not address:
        raise NativeUnavailable(
            f"this processor does not run its level {name!r}; it runs {', '.join(levels_here())}"
        )
    return Level(name, address)


class Pool:
    """Threads for whole programs; the thread that runs one is the first of them.

    ``cpus`` pins each thread but the first, which is the caller's. Raises OSError where no thread
    can be had.
    """

    def __init__(self, threads: int, cpus: Sequence[int] | None = None) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; there must be at least 1")
        if cpus is not None and len(cpus) != threads:
            raise ValueError(f"{len(cpus)} cpus are given for {threads} threads")
        pinned = None if cpus is None else (ctypes.c_int * threads)(*cpus)
        address = library().qr_pool_new(threads, pinned)
        if not address:
            raise OSError(f"no pool of {threads} threads could be made")
        self.threads = threads
        self._address = address
        weakref.finalize(self, library().qr_pool_free, address)

    def run(
        self,
        level: Level,
        calls: ctypes.Array[Call],
        count: int,
        step: Step,
        passes: int = 1,
    ) -> None:
        """The first ``count`` calls, in order, ``passes`` times over; returns when all is done. One
        caller at a time."""
        run = library().qr_run
        run(self._address, level.address, calls, count, passes, ctypes.byref(step))

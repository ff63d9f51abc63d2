"""What running out of memory looks like, and whose work it was.

There is no one exception for it: Python and numpy raise MemoryError, torch's CPU allocator a plain
RuntimeError, its CUDA allocator OutOfMemoryError, the driver an AcceleratorError, and cuBLAS a
RuntimeError of its own. Only their words tell them from other errors.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from server.engine.step_plan import StepOutOfMemory

_WORDS = (
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",  # likewise
    "out of memory",  # CUDA's allocator and driver
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the host or on a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | StepOutOfMemory):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


@contextmanager
def attribute_oom(rows: Iterable[int]) -> Iterator[None]:
    """What runs out of memory inside raises StepOutOfMemory for ``rows``. The innermost counts."""
    try:
        yield
    except StepOutOfMemory:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release_frames(error)
        raise StepOutOfMemory(tuple(dict.fromkeys(rows)), reason_of(error)) from error


def release_frames(error: BaseException) -> None:
    """Lets go of what the frames that ``error`` came through still hold: tensors of the work that
    failed, which would stay alive for as long as the error is kept."""
    for one in (error, error.__cause__, error.__context__):
        if one is not None:
            traceback.clear_frames(one.__traceback__)


def reason_of(error: BaseException) -> str:
    """The first line of what the allocator said: the rest is a stack of its own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

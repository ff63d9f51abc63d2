"""What --dtype auto comes to on a CPU for a large checkpoint of 16 bits. No torch in this process.

Without instructions for 16-bit numbers their products are converted one by one: on such a machine
eight users of a bfloat16 model together got fewer tokens a second than one. So the products are
timed where the server will run, and 16 bits are taken only where many rows are at least as fast.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from server.memory.backends.registry import backend_of
from server.memory.engine_args import EngineArgs
from server.memory.planner.plan import DoesNotFit
from server.memory.planner.planner import size_memory
from weights.formats import FORMATS, tensor_bytes
from weights.spec import ModelSpec

log = logging.getLogger(__name__)

# -m looks in the working directory first: it must be ours.
_FOLDER = Path(__file__).resolve().parents[2]
_LIMIT_S = 60.0  # torch's import on a busy machine, mostly


@dataclass(frozen=True, slots=True)
class ProductTime:
    """Least seconds of a product of ``rows`` rows in float32 and in 16 bits."""

    rows: int
    float32: float
    narrow: float

    @property
    def ratio(self) -> float:
        """Of the 16-bit product's time to float32's: above 1 it is slower."""
        return self.narrow / self.float32


Probe = Callable[[str], tuple[ProductTime, ...]]  # of a 16-bit format


@lru_cache(maxsize=2)
def probe_products(format: str) -> tuple[ProductTime, ...]:
    """Times products in a process that loads torch for it; () where that fails, which is logged."""
    name = FORMATS[format].torch_name
    command = (sys.executable, "-m", "kernels.product_probe", name)
    try:
        done = subprocess.run(
            command, cwd=_FOLDER, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT_S
        )
        done.check_returncode()
        return tuple(ProductTime(*row) for row in json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning(
            "products in %s could not be timed, so --dtype auto takes that dtype: %s", name, error
        )
        return ()


def choose_dtype(
    asked: EngineArgs,
    model: ModelSpec,
    stored: str,
    available_bytes: int,
    probe: Probe | None = None,
) -> tuple[EngineArgs, str]:
    """``asked`` with the dtype decided, and the reason where it was a choice.

    auto is the backend's choice for a checkpoint whose numbers are ``stored`` so. Where that is 16
    bits and the backend has no haste with them (a CPU), products are timed: float32, which takes
    twice the memory, is chosen where it is faster and as long a sequence fits.
    """
    if asked.dtype != "auto":
        return asked, ""
    backend = backend_of(asked)
    format = backend.parts.auto_format(model, stored)
    narrow = replace(asked, dtype=FORMATS[format].torch_name)
    if not backend.weighs_dtype or tensor_bytes((1,), format) != 2:
        return narrow, ""
    try:
        longest = size_memory(model, narrow, available_bytes).max_model_len
    except DoesNotFit:
        return narrow, ""  # nor would it in float32
    times = (probe or probe_products)(format)
    if not times:
        return narrow, ""
    found = ", ".join(f"{time.ratio:.1f} x at {time.rows} rows" for time in times)
    measured = f"{narrow.dtype} products take {found} of float32's time here"
    if all(time.ratio <= 1.0 for time in times):
        return narrow, f"{measured}: --dtype auto takes {narrow.dtype}"
    wide = replace(asked, dtype="float32")
    try:
        fits = size_memory(model, wide, available_bytes).max_model_len >= longest
    except DoesNotFit:
        fits = False
    if not fits:
        reason = "but float32 does not fit as well: --dtype auto takes"
        return narrow, f"{measured}, {reason} {narrow.dtype}"
    return wide, f"{measured}: --dtype auto takes float32, which needs twice the memory"

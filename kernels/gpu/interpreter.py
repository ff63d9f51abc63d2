"""Whether Triton interprets kernels on the CPU instead of compiling them."""

from __future__ import annotations

import triton


def interpreted() -> bool:
    """True where kernels run in Triton's interpreter: its bfloat16 arithmetic is wrong and inline
    assembly is missing, so kernels take a constexpr that steers around both."""
    return bool(triton.knobs.runtime.interpret)

"""One kernel in one configuration, as the compile gate compiles it without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WGMMA = "wgmma"  # Hopper's asynchronous tensor-core products
ASYNC_COPY = "async_copy"  # cp.async, or a bulk tensor copy
TMA = "tma"  # bulk tensor copies by descriptor
WARP_SPECIALIZED = "warp_specialized"
FLOAT64 = "float64"  # arithmetic in 64-bit floats, which no kernel may have unasked


@dataclass(frozen=True, slots=True)
class CompileCase:
    """
    Args:
        name: kernel, then what distinguishes the configuration: "paged_decode/bf16-hd128-g4".
        fn: the @triton.jit function.
        signature: argument -> type as Triton writes it ("*bf16", "*i64", "i32", "fp32"), without
            the constexpr arguments.
        constexprs: argument -> value.
        wants: what the machine code must contain on sm_90 (the names above).
        aligned: arguments that are always divisible by 16, as a launch finds them to be.
    """

    name: str
    fn: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, object]
    num_warps: int
    num_stages: int
    wants: frozenset[str] = frozenset()
    aligned: frozenset[str] = field(default_factory=frozenset)

"""What the compile gate compiles of sampling: with everything asked for, and with little."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kernels import tuning
from kernels.footprint import ceil_div
from kernels.footprint.gpu_sampling import CAPACITY, GROUP, TILE, SamplingScratch
from kernels.gpu.compile_case import FLOAT64, CompileCase
from kernels.gpu.sampling_scratch import INTEGERS, padded_tiles
from kernels.jit import sampling as jit
from kernels.jit import truncation as jit_truncation

_VOCAB = 131072  # what a program holds depends on it through the number of tiles
_DRAWING = ("temperature", "key", "position")
_TRUNCATING = (*_DRAWING, "top_k", "top_p", "min_p")
_CHANGING = (
    *("presence", "frequency", "repetition", "counts", "prompt_mask", "bitmask"),
    *("heads", "links", "bias_ids", "bias_values", "forbidden_ids", "processed"),
)
_OPTIONAL = {*_TRUNCATING, *_CHANGING, "tile_mass", "group_best", "bias_rows", "forbidden_rows"}
_OPTIONAL.remove("temperature")
_TYPES = {
    **dict.fromkeys(("logits", *_TRUNCATING, *_CHANGING), "*fp32"),
    **dict.fromkeys(SamplingScratch(1, 1, changes=True, truncates=True).regions(), "*fp32"),
    **dict.fromkeys(("counts", "bitmask", *INTEGERS), "*i32"),
    **dict.fromkeys(("top_k", "key", "position", "totals", "token_ids"), "*i64"),
    **dict.fromkeys(("bias_rows", "bias_ids", "forbidden_rows", "forbidden_ids"), "*i64"),
    **dict.fromkeys(("prompt_mask", "non_finite"), "*u8"),
}


def cases(arch: int) -> Iterator[CompileCase]:
    """Every kernel with everything asked for, and the frequent ones with little."""
    tiles = padded_tiles(ceil_div(_VOCAB, TILE))
    fixed: dict[str, dict[str, object]] = {
        "link_sparse": {"TILE": TILE},
        "scan_tiles": {"TILE": TILE, "GROUP": GROUP, "INTERPRETED": False},
        "finish_rows": {"TILE": TILE, "TILES": tiles, "INTERPRETED": False},
        "bound_rows": {"TILES": tiles, "PER_TILE": TILE // GROUP},
        "collect_tiles": {"TILE": TILE, "CAPACITY": CAPACITY},
        "draw_truncated": {"TILE": TILE, "CAPACITY": CAPACITY, "INTERPRETED": False},
    }
    truncating = {*_TRUNCATING, "tile_mass", "group_best"}
    everything = {*truncating, *_CHANGING, "bias_rows", "forbidden_rows"}
    for name in ("scan_tiles", "finish_rows"):
        yield _case(name, "greedy", {"temperature"}, fixed[name], arch)
        yield _case(name, "draw", {*_DRAWING}, fixed[name], arch)
        yield _case(name, "changed", {"temperature", *_CHANGING}, fixed[name], arch)
        yield _case(name, "changed-draw", {*_DRAWING, *_CHANGING}, fixed[name], arch)
    for name, constants in fixed.items():
        yield _case(name, "all", everything, constants, arch)
        if name != "link_sparse":
            yield _case(name, "truncate", truncating, constants, arch)


def _case(
    kernel: str, kind: str, given: set[str], constants: Mapping[str, object], arch: int
) -> CompileCase:
    """A case from the kernel's own argument names: pointers that are not given are None."""
    fn = getattr(jit, kernel, None) or getattr(jit_truncation, kernel)
    work = "changed" if "heads" in given else "draw" if "key" in given else "greedy"
    tuned = tuning.lookup(kernel, arch, work=work)
    fixed = {**constants, **tuned.blocks}
    absent = {argument: None for argument in _OPTIONAL - given if argument in fn.arg_names}
    signature = {
        argument: _TYPES.get(argument, "i32")
        for argument in fn.arg_names
        if argument not in fixed and argument not in absent
    }
    # The reference's noise and its log(min_p), to the bit, for the few tokens that are left.
    exact = kernel not in ("scan_tiles", "link_sparse") and "key" in given
    whole = {"vocab", "logits_stride", "counts_stride", "prompt_stride", "bitmask_stride"}
    aligned = {name for name, kind in signature.items() if kind[0] == "*" or name in whole}
    return CompileCase(
        name=f"{kernel}/{kind}",
        fn=fn,
        signature=signature,
        constexprs=absent | fixed,
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        wants=frozenset([FLOAT64] if exact else []),
        aligned=frozenset(aligned),
    )

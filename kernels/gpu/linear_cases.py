"""What the compile gate compiles of the matrix products: each row of the table, each format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kernels import tuning
from kernels.gpu.compile_case import ASYNC_COPY, WGMMA, CompileCase
from kernels.jit.linear_skinny import linear_dot, linear_finish, linear_reduce
from kernels.jit.linear_tiled import linear_dequantise, linear_tiled

FP8_ARCH = 89  # the first that converts float8_e4m3fn
GROUP = 64

_POINTERS = {"int8": "*i8", "int4": "*u8", "fp8": "*fp8e4nv", "fp8_bits": "*u8"}
_PLAIN = {"f32": "*fp32", "bf16": "*bf16", "f16": "*fp16"}
_SHAPES = ((1024, 4096), (4096, 4096), (28672, 4096))  # one for every row of the table


@dataclass(frozen=True, slots=True)
class _Point:
    """A product of ``rows`` rows: formats of weight and rows, the weight's shape."""

    format: str
    dtype: str
    rows: int
    out: int
    width: int

    def tuned(self, kernel: str, arch: int) -> tuning.Tuning:
        return tuning.lookup(
            kernel,
            arch,
            format=self.format,
            dtype=self.dtype,
            rows=self.rows,
            out=self.out,
            **{"in": self.width},
        )

    @property
    def is_plain(self) -> bool:
        return self.format in _PLAIN


def cases(arch: int) -> Iterator[CompileCase]:
    fp8 = "fp8" if arch >= FP8_ARCH else "fp8_bits"
    seen: set[str] = set()
    for case in _all(arch, fp8):
        if case.name not in seen:  # many shapes share a row of the table
            seen.add(case.name)
            yield case


def _all(arch: int, fp8: str) -> Iterator[CompileCase]:
    for out, width in _SHAPES:
        # fp8 shares int8's rows of the table: its conversion is gated once.
        for format in ("bf16", "int8", "int4", *([fp8] if out == 4096 else [])):
            for rows in (8, 16, 32):  # what kernels.gpu.linear.block_m makes of any
                yield _dot(_Point(format, "bf16", rows, out, width), arch)
            yield _tiled("linear_invariant", _Point(format, "bf16", 1, out, width), arch)
            if format not in ("int4", "fp8_bits"):  # of which the table reduces no rows
                yield _reduce(_Point(format, "bf16", 1, out, width), arch)
            if format in ("int8", "int4"):
                for rows in (64, 512):
                    yield _tiled("linear_tiled", _Point(format, "bf16", rows, out, width), arch)
    yield _reduce(_Point("bf16", "bf16", 2, 4096, 4096), arch, extras=True)
    yield _reduce(_Point("f32", "f32", 1, 4096, 4096), arch)
    yield _dot(_Point("bf16", "bf16", 8, 4096, 2880), arch, extras=True)
    yield _dot(_Point("f32", "f32", 32, 4096, 4096), arch)
    yield _tiled("linear_invariant", _Point("bf16", "bf16", 1, 4096, 4000), arch, extras=True)
    yield _tiled("linear_invariant", _Point("f32", "f32", 1, 4096, 4096), arch)
    yield _tiled("linear_tiled", _Point(fp8, "bf16", 512, 4096, 4096), arch)
    for format in ("int8", "int4", fp8):
        yield _dot(_Point(format, "f16", 8, 4096, 4096), arch)
        yield _dequantise(_Point(format, "bf16", 2048, 4096, 4096), arch)
    yield _finish("sums", "*fp32", splits=4, extras=False)
    yield _finish("product", "*bf16", splits=1, extras=True)


def _reduce(point: _Point, arch: int, extras: bool = False) -> CompileCase:
    tuned = point.tuned("linear_reduce", arch)
    return _product(
        "linear_reduce",
        linear_reduce,
        point,
        tuned,
        {
            "ROWS": point.rows,
            "WHOLE_TILES": point.width % tuned.blocks["BLOCK_K"] == 0,
            **_blocks(tuned, "BLOCK_N", "BLOCK_K"),
        },
        extras,
    )


def _dot(point: _Point, arch: int, extras: bool = False) -> CompileCase:
    tuned = point.tuned("linear_dot", arch)
    block_k = _block_k(point, tuned)
    return _product(
        "linear_dot",
        linear_dot,
        point,
        tuned,
        {
            "GROUP": GROUP if point.format == "int4" else 0,
            "WHOLE_TILES": point.width % block_k == 0,
            "BLOCK_M": point.rows,
            "BLOCK_K": block_k,
            "STAGES": tuned.num_stages,
            **_blocks(tuned, "BLOCK_N", "SPLITS"),
        },
        extras,
        frozenset({ASYNC_COPY}),
    )


def _tiled(kernel: str, point: _Point, arch: int, extras: bool = False) -> CompileCase:
    tuned = point.tuned(kernel, arch)
    block_k = _block_k(point, tuned)
    return _product(
        kernel,
        linear_tiled,
        point,
        tuned,
        {
            "GROUP": GROUP if point.format == "int4" else 0,
            "WHOLE_TILES": point.width % block_k == 0,
            "BLOCK_K": block_k,
            "STAGES": tuned.num_stages,
            **_blocks(tuned, "BLOCK_M", "BLOCK_N", "BAND"),
        },
        extras,
        frozenset({ASYNC_COPY} if point.dtype == "f32" else {ASYNC_COPY, WGMMA}),
    )


def _product(
    kernel: str,
    fn: Any,
    point: _Point,
    tuned: tuning.Tuning,
    constexprs: Mapping[str, object],
    extras: bool,
    wants: frozenset[str] = frozenset(),
) -> CompileCase:
    rows = _PLAIN[point.dtype]
    parts = constexprs.get("SPLITS", 1) != 1
    pointers = {
        "x": rows,
        "weight": rows if point.is_plain else _POINTERS[point.format],
        "scales": _scales(point),
        "bias": rows,
        "residual": rows,
        "out": "*fp32" if parts else rows,
    }
    sizes = {"out_features": "i32", "in_features": "i32"}
    if fn is not linear_reduce:
        sizes["rows"] = "i32"
    shape = "x".join(
        str(constexprs[name])
        for name in ("ROWS", "BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLITS")
        if name in constexprs
    )
    whole = constexprs["WHOLE_TILES"]
    return CompileCase(
        name=f"{kernel}/{point.format}-{point.dtype}-{shape}-{tuned.num_warps}w"
        + ("" if whole else "-cut")
        + ("-extras" if extras else ""),
        fn=fn,
        signature=pointers | sizes,
        constexprs={
            "FORMAT": "plain" if point.is_plain else point.format,
            "INTERPRETED": False,
            **_epilogue(extras),
            **constexprs,
        },
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        wants=wants,
        aligned=frozenset(
            [*pointers, "out_features", *(["in_features"] if point.width % 16 == 0 else [])]
        ),
    )


def _dequantise(point: _Point, arch: int) -> CompileCase:
    tuned = point.tuned("linear_dequantise", arch)
    pointers = {
        "weight": _POINTERS[point.format],
        "scales": _scales(point),
        "panel": _PLAIN[point.dtype],
    }
    sizes = ("out_features", "in_features")
    return CompileCase(
        name=f"linear_dequantise/{point.format}-{point.dtype}",
        fn=linear_dequantise,
        signature=pointers | dict.fromkeys(("first", "panel_rows", *sizes), "i32"),
        constexprs={
            "FORMAT": point.format,
            "GROUP": GROUP if point.format == "int4" else 0,
            "BLOCK_K": _block_k(point, tuned),
            "INTERPRETED": False,
            **_blocks(tuned, "BLOCK_N"),
        },
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
        aligned=frozenset([*pointers, *sizes]),
    )


def _finish(name: str, parts: str, *, splits: int, extras: bool) -> CompileCase:
    added = "*bf16" if extras else parts  # absent, parts stand in for them
    pointers = {"parts": parts, "bias": added, "residual": added, "out": "*bf16"}
    return CompileCase(
        name=f"linear_finish/{name}",
        fn=linear_finish,
        signature=pointers | {"elements": "i32", "out_features": "i32"},
        constexprs={"SPLITS": splits, "BLOCK": 1024, **_epilogue(extras)},
        num_warps=4,
        num_stages=3,
        aligned=frozenset([*pointers, "out_features"]),
    )


def _scales(point: _Point) -> str:
    if point.is_plain:
        return _PLAIN[point.dtype]  # there are none: the rows stand in for them
    return "*i32" if point.format == "int4" else "*fp32"


def _epilogue(extras: bool) -> dict[str, object]:
    return {
        "ACTIVATION": "gelu_erf" if extras else "",
        "HAS_BIAS": extras,
        "HAS_RESIDUAL": extras,
    }


def _blocks(tuned: tuning.Tuning, *names: str) -> dict[str, object]:
    return {name: tuned.blocks[name] for name in names}


def _block_k(point: _Point, tuned: tuning.Tuning) -> int:
    return 2 * GROUP if point.format == "int4" else tuned.blocks["BLOCK_K"]

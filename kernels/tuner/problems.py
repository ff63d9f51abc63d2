"""What is tuned, the most worth it first: the largest part of a step at few rows, then the rest.

A problem's conditions are ranges around its shapes; shapes that no problem stands for keep the
general rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

from kernels.bench import layer_rows, linear_rows, sampling_rows
from kernels.bench.paged import Step, log_uniform, own
from kernels.gate.offline import Figures
from kernels.tuner.problem import Candidate, Problem, Shape
from kernels.tuning import Tuning

MANY = 1 << 30  # the end of a range that has none
WIDE = [16384, MANY]  # output channels: enough to fill a GPU whatever the tile
NARROW = [1, 16383]


def all_problems() -> list[Problem]:
    return [
        *_linear_problems(),
        *_decode_problems(),
        *_prefill_problems(),
        *_layer_problems(),
        *_sampling_problems(),
    ]


def _configurations(
    kernel: str,
    blocks: Mapping[str, tuple[int, ...]],
    warps: tuple[int, ...],
    stages: tuple[int, ...] = (1,),
) -> tuple[Candidate, ...]:
    """Every combination of block sizes, warps and stages."""
    return tuple(
        {kernel: Tuning(dict(zip(blocks, sizes, strict=True)), num_warps, num_stages)}
        for *sizes, num_warps, num_stages in product(*blocks.values(), warps, stages)
    )


def _attention_shape(name: str, step: Step) -> Shape:
    return Shape(name, step.nbytes, partial(own, step, False))


# --- decode attention -----------------------------------------------------------------------------


def _decode_problems() -> Iterator[Problem]:
    """Tile, programs and pipeline together; then the pipeline alone for a cache of bytes."""
    for head_dim, dims in ((128, [65, 128]), (64, [1, 64])):
        step = partial(Step, head_dim=head_dim)
        yield Problem(
            name=f"decode hd{head_dim}",
            when={
                "paged_decode_work": {"head_dim": dims},
                "paged_decode": {"head_dim": dims, "cache_bytes": 2, "group": [1, 16]},
            },
            candidates=tuple(
                {
                    "paged_decode_work": Tuning(
                        {"TILE": tile, "PER_SM": per_sm, "LEAST_TILES": 2}, 4, 1
                    ),
                    "paged_decode": Tuning({}, warps, stages),
                }
                for tile, per_sm, warps, stages in product((64, 128), (2, 3, 4), (4, 8), (2, 3, 4))
            ),
            shapes=(
                _attention_shape("B16 KV4096", step((4096,) * 16)),
                _attention_shape("B1 KV8192", step((8192,))),
                _attention_shape("ragged", step(log_uniform(32, 128, 8192))),
            ),
            refuse=_more_programs_than_fit,
        )
        yield Problem(
            name=f"decode hd{head_dim} fp8 cache",
            when={"paged_decode": {"head_dim": dims, "cache_bytes": 1, "group": [1, 16]}},
            candidates=_configurations("paged_decode", {}, (2, 4, 8), (2, 3, 4, 5)),
            shapes=(_attention_shape("B32 KV4096", step((4096,) * 32, quantised=True)),),
        )


def _more_programs_than_fit(candidate: Candidate, figures: Mapping[str, Figures]) -> str | None:
    """Programs stay on their multiprocessor for the whole launch: none may wait for a place."""
    found = figures["paged_decode"]
    wanted = candidate["paged_decode_work"].blocks["PER_SM"]
    shared = wanted * (found.shared + 1024)
    registers = wanted * found.warps * 32 * found.registers
    if shared > 228 * 1024 or registers > 65536:
        return f"{wanted} programs want {registers} registers and {shared} bytes shared"
    return None


# --- prefill attention ----------------------------------------------------------------------------


def _prefill_problems() -> Iterator[Problem]:
    """Long rows and short ones; a box of keys needs a page that a tile fits into."""
    common = {"q_bytes": 2, "cache_bytes": 2, "block_size": [64, 128]}
    for head_dim, name, lanes, step in (
        (128, "long", [1024, MANY], Step((4096,), queries=4096)),
        (128, "short", [65, 1023], Step((1024,) * 16, queries=64)),
        (64, "long", [1024, MANY], Step((4096,), queries=4096, head_dim=64)),
    ):
        yield Problem(
            name=f"prefill hd{head_dim} {name}",
            when={"paged_prefill": common | {"head_pad": head_dim, "lanes": lanes}},
            candidates=_configurations(
                "paged_prefill",
                {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64), "BOXES": (0, 1)},
                (4, 8),
                (2, 3),
            ),
            shapes=(_attention_shape(name, step),),
        )


# --- the matrix product ---------------------------------------------------------------------------


def _linear_problems() -> Iterator[Problem]:
    for format in ("bf16", "int8", "fp8"):
        yield from _reduce_problems(format)
    for format in ("int4", "bf16", "int8", "fp8"):
        yield from _dot_problems(format)
    yield _library_problem()


def _linear_shape(rows: int, out: int, width: int, format: str) -> Shape:
    nbytes = round(out * width * linear_rows.WEIGHT_BITS[format] / 8)
    make = partial(linear_rows.own, rows, out, width, format, False)
    return Shape(f"M{rows} {width}x{out}", nbytes, make)


def _reduce_problems(format: str) -> Iterator[Problem]:
    """One row: a vector times a matrix."""
    for name, range_, sizes in (
        ("wide", WIDE, ((28672, 4096), (128256, 4096))),
        ("narrow", NARROW, ((4096, 4096), (4096, 14336), (6144, 4096))),
    ):
        conditions: dict[str, Any] = {"format": format, "dtype": "bf16", "out": range_}
        yield Problem(
            name=f"linear {format} one row {name}",
            when={"linear_reduce": conditions | {"in": [1024, MANY]}},
            candidates=_configurations(
                "linear_reduce", {"BLOCK_N": (2, 4, 8), "BLOCK_K": (512, 1024)}, (4, 8)
            ),
            shapes=tuple(_linear_shape(1, out, width, format) for out, width in sizes),
        )


def _dot_problems(format: str) -> Iterator[Problem]:
    """A few rows; int4 takes this form for one row too, and its groups set BLOCK_K."""
    for name, range_, out, tiles, splits in (
        ("wide", WIDE, 28672, (16, 32, 64), (1,)),
        ("narrow", NARROW, 4096, (16, 32), (1, 4)),
    ):
        blocks = {"BLOCK_N": tiles, "SPLITS": splits}
        rows = (1, 16)
        if format != "int4":
            blocks["BLOCK_K"] = (128, 256)
            rows = (4, 16)
        conditions: dict[str, Any] = {"format": format, "dtype": "bf16", "out": range_}
        yield Problem(
            name=f"linear {format} few rows {name}",
            when={"linear_dot": conditions | {"in": [1024, MANY]}},
            candidates=_configurations("linear_dot", blocks, (2, 4), (3, 5)),
            shapes=tuple(_linear_shape(row, out, 4096, format) for row in rows),
        )


def _library_problem() -> Problem:
    """From how many rows on the library's product is the faster one."""
    return Problem(
        name="linear bf16 library from",
        when={"linear": {"format": "bf16", "dtype": "bf16"}},
        candidates=tuple(
            {
                "linear": Tuning(
                    {"MOST_REDUCED_ROWS": 2, "MOST_SKINNY_ROWS": 32, "LEAST_LIBRARY_ROWS": least},
                    1,
                    1,
                )
            }
            for least in (3, 9, 17)
        ),
        shapes=tuple(
            _linear_shape(rows, out, 4096, "bf16") for rows in (4, 12, 32) for out in (4096, 28672)
        ),
    )


# --- what surrounds them --------------------------------------------------------------------------


def _layer_problems() -> Iterator[Problem]:
    for width, range_ in ((4096, [2049, 8192]), (2048, [1025, 2048]), (1024, [513, 1024])):
        shapes = tuple(
            Shape(f"M{rows}", 8 * rows * width, partial(layer_rows.own_norm, rows, width))
            for rows in (1, 4096)
        )
        yield Problem(
            name=f"norm {width}",
            when={"add_norm": {"width": range_}},
            candidates=_configurations("add_norm", {"ROWS": (1, 2)}, (2, 4, 8, 16)),
            shapes=shapes,
        )
    for head_dim, dims in ((128, [65, 128]), (64, [1, 64])):
        yield Problem(
            name=f"rotate and store hd{head_dim}",
            when={"rotary_store_kv": {"head_dim": dims}},
            candidates=_configurations(
                "rotary_store_kv", {"TOKENS": (1, 2, 4), "HEADS": (8, 16)}, (1, 2, 4)
            ),
            shapes=tuple(
                Shape(
                    f"M{tokens}",
                    200 * tokens * head_dim,
                    partial(layer_rows.own_store, tokens, 32, 8, head_dim),
                )
                for tokens in (1, 1024)
            ),
        )


# --- choosing tokens ------------------------------------------------------------------------------


def _sampling_problems() -> Iterator[Problem]:
    def shapes(way: str) -> tuple[Shape, ...]:
        return tuple(
            Shape(f"{way} {rows}", 4 * rows * 131072, partial(sampling_rows.own, way, rows, 131072))
            for rows in (1, 128)
        )

    warps = (2, 4, 8, 16)
    yield Problem(
        "sample greedy",
        {"scan_tiles": {"work": "greedy"}},
        _configurations("scan_tiles", {}, warps),
        shapes("greedy"),
    )
    truncated = shapes("top-k top-p")
    yield Problem(
        "sample bounds", {"bound_rows": {}}, _configurations("bound_rows", {}, warps), truncated
    )
    yield Problem(
        "sample collect",
        {"collect_tiles": {}},
        _configurations("collect_tiles", {}, warps),
        truncated,
    )
    yield Problem(
        "sample draw",
        {"draw_truncated": {}},
        _configurations("draw_truncated", {"STEP": (512, 1024, 2048)}, warps),
        truncated,
    )

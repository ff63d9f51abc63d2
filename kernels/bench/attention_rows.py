"""Rows of attention: decode over a paged cache, and prefill."""

from __future__ import annotations

from functools import partial

from kernels.bench.paged import Step, flashinfer, log_uniform, own, torch_dense
from kernels.bench.row import Contender, Goal, Limit, Row

DECODE_FULL = (
    (1, "decode B32 KV4096", Step((4096,) * 32), Goal(microseconds=147)),
    (2, "decode B64 KV4096", Step((4096,) * 64), Goal(microseconds=290)),
    (3, "decode B1 KV1024", Step((1024,)), Goal(microseconds=10)),
    (3, "decode B1 KV65536", Step((65536,)), Goal(microseconds=85)),
    (4, "decode B32 ragged 128..16384", Step(log_uniform(32, 128, 16384)), Goal(fraction=0.75)),
    (5, "decode B32 KV4096 fp8", Step((4096,) * 32, quantised=True), Goal(microseconds=85)),
)
PREFILL_FULL = (
    (6, "prefill 8192", Step((8192,), queries=8192), Goal(fraction=430 / 790)),
    (6, "prefill 16384", Step((16384,), queries=16384), Goal(fraction=430 / 790)),
    (6, "prefill 2048 after 14336", Step((16384,), queries=2048), Goal(fraction=400 / 790)),
)
_small = partial(Step, heads=4, kv_heads=2, head_dim=64, block_size=16)
DECODE_TINY = (
    (1, "decode", _small((40, 40)), Goal(microseconds=147)),
    (4, "decode ragged", _small(log_uniform(3, 4, 90)), Goal(fraction=0.75)),
    (5, "decode fp8", _small((40, 40), quantised=True), Goal()),
)
PREFILL_TINY = (
    (6, "prefill", _small((48,), queries=48), Goal(fraction=0.5)),
    (6, "prefill after a prefix", _small((48,), queries=20), Goal(fraction=0.5)),
)


def attention_rows(tiny: bool) -> list[Row]:
    """Decode is limited by bytes, prefill by operations."""
    decode, prefill = (DECODE_TINY, PREFILL_TINY) if tiny else (DECODE_FULL, PREFILL_FULL)
    return [
        Row(
            number=number,
            name=name,
            nbytes=step.nbytes,
            operations=step.operations,
            limit=limit,
            goal=goal,
            contenders=(
                Contender("quire", partial(own, step, False)),
                Contender("quire batch-invariant", partial(own, step, True)),
                Contender("torch sdpa", partial(torch_dense, step)),
                Contender("flashinfer", partial(flashinfer, step)),
            ),
        )
        for cases, limit in ((decode, Limit.COPY), (prefill, Limit.PRODUCT))
        for number, name, step, goal in cases
    ]

"""Bytes of a step's intermediate tensors on a GPU, phase by phase.

As server.memory.intermediates, but the kernels of a layer work in registers and leave nothing
beside their results, and logits go into a persistent buffer. Products of few rows, and of quantised
weights, have scratch of our own; what libraries take inside a product is theirs (workspace), and is
not listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kernels.footprint.gpu_linear import gpu_product_temporaries
from kernels.footprint.gpu_sampling import logprob_workspace_bytes, sampling_workspace_bytes
from server.memory.layer_program import (
    AddNorm,
    Clip,
    LayerInputs,
    Operation,
    Product,
    ScaleQueries,
    StreamScale,
    Value,
)
from server.memory.phases import Phase, Tensors, forward_phases, logit_phases, query_factors
from weights.spec import ModelSpec

Scratch = Callable[..., Tensors]  # (rows, columns, out, [format]) -> what a product holds

# Rows whose penalties read counts and masks are sampled in parts of this much of the logits: a
# part's counts (4 bytes a logit) and masks (1) are set apart beside them.
TABLE_LOGIT_BYTES = 64 << 20


def gpu_phases(
    model: ModelSpec,
    *,
    tokens: int,
    rows: int,
    element_bytes: int,
    logit_rows: int,
    num_top: int,
    quantization: str | None = None,
    batch_invariant: bool = False,
) -> tuple[Phase, ...]:
    """Every phase of a step of ``tokens`` tokens and ``logit_rows`` rows of logits at once."""

    def scratch(rows: int, columns: int, out: int, format: str | None = quantization) -> Tensors:
        return gpu_product_temporaries(
            rows,
            columns,
            out,
            element_bytes,
            format=format or "bf16",
            batch_invariant=batch_invariant,
        )

    kinds = map(model.as_layer, model.kinds_of_layers)
    footprint = GpuFootprint(tokens, element_bytes, scratch)
    return (
        *(phase for kind in kinds for phase in forward_phases(kind, footprint)),
        *_logit_phases(model, tokens, rows, element_bytes, logit_rows, num_top, scratch),
    )


def table_rows(vocab_size: int) -> int:
    """How many rows with penalties are sampled at a time."""
    rows = TABLE_LOGIT_BYTES // (4 * vocab_size)
    return max(1, rows if rows < 16 else rows // 16 * 16)


@dataclass(frozen=True, slots=True)
class GpuFootprint:
    """What our kernels hold in a step of so many tokens: their results, and a product's scratch."""

    tokens: int
    element_bytes: int
    scratch: Scratch

    def bytes_of(self, step: Operation, value: Value) -> int:
        return self.tokens * value.channels * self.element_bytes

    def moments(self, step: Operation) -> tuple[Phase, ...]:
        made = tuple((value.name, self.bytes_of(step, value)) for value in step.writes)
        match step:
            case AddNorm():
                (_, normed), *_ = made  # the sum is made, whether or not it is read
                return (Phase(step.name, (("normed", normed), ("total", normed))),)
            case Clip() | StreamScale():
                return (Phase(step.name, ()),)
            case ScaleQueries():
                return (Phase(step.name, query_factors(self.tokens)),)
            case Product():
                (out,) = step.writes
                held = self.scratch(self.tokens, step.columns, out.channels)
                return (Phase(step.name, (*made, *held)),)
            case LayerInputs():
                _, (_, wide) = made
                return (Phase(step.name, (("projected", wide), ("layer_inputs", wide))),)
            case _:
                return (Phase(step.name, made),)


def _logit_phases(
    model: ModelSpec,
    tokens: int,
    rows: int,
    element: int,
    logit_rows: int,
    num_top: int,
    product: Scratch,
) -> Iterator[Phase]:
    vocab = model.vocab_size
    sampled = min(rows, logit_rows)
    apart = min(sampled, table_rows(vocab)) * vocab
    return logit_phases(
        model,
        tokens=tokens,
        rows=logit_rows + sampled,
        element_bytes=element,
        final_norm=(("final_normed", 4 * (logit_rows + sampled) * model.hidden_size * element),),
        logits=(
            ("logits_narrow", logit_rows * vocab * element),
            *product(logit_rows, model.table_width, vocab, "bf16"),  # never quantised
        ),
        logprobs=(
            ("logits_apart", 4 * sampled * vocab),
            ("logprob_scratch", logprob_workspace_bytes(logit_rows, vocab, num_top)),
            ("reported", 8 * logit_rows * (1 + num_top)),
        ),
        sample=(
            *(("counts_apart", 4 * apart), ("mask_apart", apart)),
            ("sampling_scratch", sampling_workspace_bytes(sampled, vocab)),
        ),
    )

"""Bytes of a step's intermediate tensors on a GPU, phase by phase.

As server.memory.intermediates, but the kernels of a layer work in registers and leave nothing
beside their results, and logits go into a persistent buffer. What libraries take inside a product
is theirs (workspace), and is not listed here.
"""

from __future__ import annotations

from collections.abc import Callable

from kernels.footprint.gpu_linear import gpu_product_temporaries
from kernels.footprint.gpu_sampling import logprob_workspace_bytes, sampling_workspace_bytes
from server.memory.intermediates import Phase, Tensors
from weights.spec import ModelSpec

Product = Callable[..., Tensors]  # (rows, columns, out, [format]) -> what a product holds

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

    def product(rows: int, columns: int, out: int, format: str | None = quantization) -> Tensors:
        return gpu_product_temporaries(
            rows,
            columns,
            out,
            element_bytes,
            format=format or "bf16",
            batch_invariant=batch_invariant,
        )

    return (
        *_layer_phases(model, tokens, element_bytes, product),
        *_logit_phases(model, tokens, rows, element_bytes, logit_rows, num_top, product),
    )


def table_rows(vocab_size: int) -> int:
    """How many rows with penalties are sampled at a time."""
    rows = TABLE_LOGIT_BYTES // (4 * vocab_size)
    return max(1, rows if rows < 16 else rows // 16 * 16)


def _layer_phases(
    model: ModelSpec, tokens: int, element: int, product: Product
) -> tuple[Phase, ...]:
    heads, mlp = model.attention, model.mlp
    hidden = tokens * model.hidden_size * element
    residual, given, normed = ("residual", hidden), ("hidden", hidden), ("normed", hidden)
    qkv_size = heads.query_size + 2 * heads.kv_size
    qkv = ("qkv", tokens * qkv_size * element)
    attended = ("attended", tokens * heads.query_size * element)
    up_size = (2 if mlp.gated else 1) * mlp.intermediate_size
    up = ("up", tokens * up_size * element)
    inner = ("inner", tokens * mlp.intermediate_size * element)
    return (
        Phase("norm", (given, residual, ("total", hidden), normed)),
        Phase("qkv", (residual, normed, qkv, *product(tokens, model.hidden_size, qkv_size))),
        Phase("attention", (residual, qkv, attended)),
        Phase(
            "attention_output",
            (residual, attended, given, *product(tokens, heads.query_size, model.hidden_size)),
        ),
        Phase("up", (residual, normed, up, *product(tokens, model.hidden_size, up_size))),
        Phase("activation", (residual, up, inner)),
        Phase(
            "down",
            (residual, inner, given, *product(tokens, mlp.intermediate_size, model.hidden_size)),
        ),
    )


def _logit_phases(
    model: ModelSpec,
    tokens: int,
    rows: int,
    element: int,
    logit_rows: int,
    num_top: int,
    product: Product,
) -> tuple[Phase, ...]:
    vocab = model.vocab_size
    scratch = product(logit_rows, model.hidden_size, vocab, "bf16")  # never quantised
    hidden = tokens * model.hidden_size * element
    picked = (logit_rows + min(rows, tokens)) * model.hidden_size * element
    narrow = ("logits_narrow", logit_rows * vocab * element)
    apart = min(rows, table_rows(vocab), logit_rows) * vocab
    tables: Tensors = (("counts_apart", 4 * apart), ("mask_apart", apart))
    drawn = sampling_workspace_bytes(min(rows, logit_rows), vocab)
    ranked = logprob_workspace_bytes(logit_rows, vocab, num_top)
    final = (("all_hidden", hidden), ("all_residual", hidden), ("final_normed", 4 * picked))
    return (
        Phase("final_norm", final),
        Phase("logits", (("picked", picked), narrow, *scratch)),
        Phase("sample", (("picked", picked), *tables, ("sampling_scratch", drawn))),
        Phase(
            "logprobs",
            (
                ("picked", picked),
                ("logits_apart", 4 * min(rows, logit_rows) * vocab),
                ("logprob_scratch", ranked),
                ("reported", 8 * logit_rows * (1 + num_top)),
            ),
        ),
    )

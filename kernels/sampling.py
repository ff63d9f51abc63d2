"""Choosing tokens from logits, and log-probabilities.

The order of a row's processing: repetition, frequency and presence penalty, bias, forbidden tokens,
bitmask, temperature, min_p, top_k, top_p, and then one draw. Penalties, top_k, top_p and min_p mean
what they mean in vLLM, min_p before the other two as there, with one refinement: of equal logits
the lower token id ranks first, so that top_k keeps exactly k tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.checks import INTEGERS, check_dtype, check_range, check_same_device, check_shape
from kernels.dispatch import select
from kernels.footprint import ceil_div
from kernels.types import SampleOutput, SamplingTensors

_FLOAT = (torch.float32,)
_LONG = (torch.int64,)
_ROW_FIELDS: tuple[tuple[str, tuple[torch.dtype, ...]], ...] = (
    ("temperature", _FLOAT),
    ("top_k", INTEGERS),
    ("top_p", _FLOAT),
    ("min_p", _FLOAT),
    ("presence", _FLOAT),
    ("frequency", _FLOAT),
    ("repetition", _FLOAT),
    ("key", _LONG),
    ("position", _LONG),
)
_TABLE_FIELDS = (("output_counts", (torch.int32,)), ("prompt_mask", (torch.bool,)))
_NEEDS = (
    ("presence", "output_counts"),
    ("frequency", "output_counts"),
    ("repetition", "output_counts"),
    ("repetition", "prompt_mask"),
)


def _check_params(logits: Tensor, params: SamplingTensors) -> None:
    rows, vocab = logits.shape
    for fields, shape in ((_ROW_FIELDS, (rows,)), (_TABLE_FIELDS, (rows, vocab))):
        for name, dtypes in fields:
            tensor = getattr(params, name)
            if tensor is not None:
                check_shape(f"params.{name}", tensor, shape)
                check_dtype(f"params.{name}", tensor, dtypes)
                check_same_device(**{"logits": logits, f"params.{name}": tensor})
    for name, needed in _NEEDS:
        if getattr(params, name) is not None and getattr(params, needed) is None:
            raise ValueError(f"params.{name} is given without params.{needed}, which it needs")
    if params.bitmask is not None:
        check_shape("params.bitmask", params.bitmask, (rows, ceil_div(vocab, 32)))
        check_dtype("params.bitmask", params.bitmask, (torch.int32,))
        check_same_device(**{"logits": logits, "params.bitmask": params.bitmask})
    for name in ("bias", "forbidden"):
        sparse = getattr(params, name)
        if sparse is not None:
            check_dtype(f"params.{name}.rows", sparse.rows, _LONG)
            check_shape(f"params.{name}.ids", sparse.ids, tuple(sparse.rows.shape))
            check_dtype(f"params.{name}.ids", sparse.ids, _LONG)
    if params.bias is not None:
        check_shape("params.bias.values", params.bias.values, tuple(params.bias.rows.shape))
        check_dtype("params.bias.values", params.bias.values, _FLOAT)


def sample(logits: Tensor, params: SamplingTensors) -> SampleOutput:
    """One token for every row of logits [R, V] float32, which are not changed.

    With temperature 0 the token of the highest processed logit, the lowest id among equals. Else
    the token with the highest ``(logit - highest logit) / temperature + gumbel`` among those that
    min_p, top_k and top_p keep, where the Gumbel noise of a token depends on (key, position, token
    id) alone (kernels.philox): a row's token depends on no other row. A row with a logit that is
    not finite, or with every token forbidden, yields token id 0 and sets ``non_finite``.
    Raises ValueError for a wrong argument.
    """
    check_shape("logits", logits, (None, None))
    check_dtype("logits", logits, _FLOAT)
    if logits.shape[1] < 1:
        raise ValueError("logits has no columns; it must have at least one")
    _check_params(logits, params)
    run: Callable[..., SampleOutput] = select("sample", logits.device)
    return run(logits, params)


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities in nats of given tokens and of the likeliest ``num_top``.

    logits [R, V] float32 are raw; token_ids [R] int64. Returns ids [R, 1 + num_top] int32 and
    logprobs [R, 1 + num_top] float32: column 0 is the given token, then the likeliest in falling
    order, the lower id first among equals. Raises ValueError for a wrong argument.
    """
    check_shape("logits", logits, (None, None))
    check_dtype("logits", logits, _FLOAT)
    check_shape("token_ids", token_ids, (logits.shape[0],))
    check_dtype("token_ids", token_ids, INTEGERS)
    check_range("num_top", num_top, 0, logits.shape[1])
    check_same_device(logits=logits, token_ids=token_ids)
    run: Callable[..., tuple[Tensor, Tensor]] = select("token_logprobs", logits.device)
    return run(logits, token_ids, num_top)

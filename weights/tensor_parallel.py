"""What one of several tensor-parallel ranks holds: of a parameter, and of a model. No torch.

A rank computes whole query heads. Key and value heads are shared out likewise; where there are
fewer of them than ranks, several ranks hold a copy of the same one. Rows, columns and vocabulary
that do not divide are padded, so that every rank holds what the largest one needs.
"""

from __future__ import annotations

from dataclasses import replace

from weights.formats import ceil_div
from weights.inventory import Parameter, Split
from weights.spec import AttentionSpec, ModelSpec


def check_ranks(spec: ModelSpec, ranks: int) -> None:
    """Raises ValueError where ``spec`` cannot be shared out over ``ranks``; says why."""
    for attention in filter(None, (spec.attention, spec.local_attention)):
        query, kv = attention.num_query_heads, attention.num_kv_heads
        if query % ranks:
            raise ValueError(f"{query} query heads do not divide over {ranks} ranks")
        if kv % ranks and ranks % kv:
            raise ValueError(
                f"{kv} key-value heads neither divide over {ranks} ranks nor can each be copied to "
                "equally many of them"
            )


def rank_shape(parameter: Parameter, ranks: int) -> tuple[int, ...]:
    """Shape of the part of a parameter that one of ``ranks`` holds."""
    if ranks == 1 or parameter.split is Split.REPLICATED:
        return parameter.shape
    rows, *columns = parameter.shape
    if parameter.split is Split.COLUMNS:
        return (rows, ceil_div(columns[0], ranks))
    if parameter.split is Split.HEADS:
        rows_of_head = rows // parameter.heads
        return (_heads(parameter.heads, ranks) * rows_of_head, *columns)
    return (ceil_div(rows, ranks), *columns)


def rank_spec(spec: ModelSpec, ranks: int) -> ModelSpec:
    """The model as one rank computes it: its heads, and its part of the MLP's inner width.

    The hidden state and the logits are whole on every rank. Raises ValueError as check_ranks.
    """
    if ranks == 1:
        return spec
    check_ranks(spec, ranks)
    mlp, experts, local = spec.mlp, spec.experts, spec.local_attention
    if experts is not None:
        experts = replace(
            experts,
            intermediate_size=ceil_div(experts.intermediate_size, ranks),
            shared_size=ceil_div(experts.shared_size, ranks),
        )
    return replace(
        spec,
        attention=_rank_attention(spec.attention, ranks),
        local_attention=None if local is None else _rank_attention(local, ranks),
        shared_intermediate_size=ceil_div(spec.shared_intermediate_size, ranks),
        mlp=replace(mlp, intermediate_size=ceil_div(mlp.intermediate_size, ranks)),
        experts=experts,
    )


def _rank_attention(attention: AttentionSpec, ranks: int) -> AttentionSpec:
    return replace(
        attention,
        num_query_heads=_heads(attention.num_query_heads, ranks),
        num_kv_heads=_heads(attention.num_kv_heads, ranks),
    )


def _heads(heads: int, ranks: int) -> int:
    return max(1, heads // ranks)

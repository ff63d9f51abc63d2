"""Floating-point operations of a token, from the matrices that it passes. No torch.

A product with a matrix costs two operations an element. Looking an embedding up costs none; of a
mixture a token passes the chosen experts alone. Attention costs two operations an element for
scores and two for values, for every query head and every token that is seen: it grows with length.
With latent attention a decoded token's heads read the latent rows as they are cached, and a
prompt's the keys and values that are widened from them.
Norms, activations and sampling are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weights.inventory import Component, tally
from weights.spec import AttentionSpec, ModelSpec

_TABLES = {Component.EMBEDDING, Component.LAYER_INPUTS, Component.POSITION}
_NO_PRODUCT = frozenset({*_TABLES, Component.NORM, Component.BIAS})


@dataclass(frozen=True, slots=True)
class TokenFlops:
    """``layers`` and ``logits`` are matrix elements that a token is multiplied by."""

    spec: ModelSpec
    layers: int
    logits: int

    def decode(self, length: int) -> int:
        """Of one token that sees ``length`` tokens, its own included."""
        return 2 * (self.layers + self.logits) + self.attention(length)

    def prefill(self, length: int) -> int:
        """Of a prompt of ``length`` tokens, of which the last alone needs logits."""
        attention = sum(one.flops for one in self.prompt_attention(length))
        return 2 * (length * self.layers + self.logits) + attention

    def attention(self, length: int) -> int:
        """The part of ``decode`` that grows with length."""
        return sum(one.flops for one in self.decode_attention(length))

    def prompt_attention(self, length: int) -> tuple[AttentionFlops, ...]:
        """Of all of a prompt's tokens, in the layers of each kind of heads."""
        return self._attention(_prompt_channels, length, _sum_seen)

    def decode_attention(self, length: int) -> tuple[AttentionFlops, ...]:
        """Of one token that sees ``length`` tokens, likewise."""
        return self._attention(_decode_channels, length, _seen)

    def _attention(
        self,
        channels: Callable[[AttentionSpec], tuple[int, int]],
        length: int,
        seen: Callable[[int, int], int],
    ) -> tuple[AttentionFlops, ...]:
        spec = self.spec
        return tuple(
            AttentionFlops(
                *channels(spec.layer_attention(kind)),
                sum(seen(length, spec.window(layer)) for layer in spec.layers_like(kind)),
            )
            for kind in spec.kinds_of_layers
        )


@dataclass(frozen=True, slots=True)
class AttentionFlops:
    """Channels of scores and of values, of all query heads, that are multiplied for each token that
    is seen, and how many are, in all layers with such heads."""

    scores: int
    values: int
    seen: int

    @property
    def flops(self) -> int:
        return 2 * (self.scores + self.values) * self.seen


def _prompt_channels(attention: AttentionSpec) -> tuple[int, int]:
    return attention.query_size, attention.attended_size


def _decode_channels(attention: AttentionSpec) -> tuple[int, int]:
    """Of a latent cache every head reads whole rows: what would widen them is applied to the query,
    and to what comes out, instead."""
    latent, heads = attention.latent, attention.num_query_heads
    if latent is None:
        return _prompt_channels(attention)
    return heads * (latent.kv_rank + latent.rope_dim), heads * latent.kv_rank


def token_flops(spec: ModelSpec) -> TokenFlops:
    table = spec.vocab_size * spec.table_width
    products = sum(
        times * parameter.num_elements
        for parameter, times in tally(spec).items()
        if parameter.component not in _NO_PRODUCT and parameter.component != Component.UNEMBEDDING
    )
    return TokenFlops(spec, products - idle_expert_elements(spec), table)


def idle_expert_elements(spec: ModelSpec) -> int:
    """Matrix elements of the experts that a token does not pass."""
    experts = spec.experts
    if experts is None:
        return 0
    return (experts.count - experts.chosen) * expert_elements(spec)


def expert_elements(spec: ModelSpec) -> int:
    """Matrix elements of one expert of every layer that has them."""
    if spec.experts is None:
        return 0
    layers = sum(spec.has_experts(layer) for layer in range(spec.num_layers))
    matrices = 3 if spec.mlp.gated else 2
    return layers * matrices * spec.hidden_size * spec.experts.intermediate_size


def _seen(length: int, window: int) -> int:
    return min(length, window) if window else length


def _sum_seen(length: int, window: int) -> int:
    """Tokens seen by all tokens of a prompt together: 1 + 2 + ... and no more than the window."""
    rising = min(length, window) if window else length
    return rising * (rising + 1) // 2 + (length - rising) * window

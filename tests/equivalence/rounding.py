"""How far rounding alone may move a log-probability, from the arithmetic of the model.

Two ways to the same answer add the same numbers up in other orders; which orders those are is the
library's and the processor's affair. What they have in common is the number of roundings that an
answer goes through, one for every term of every sum on its way. Roundings go up as often as down,
so n of them come to about the square root of n times the unit roundoff, relative to the numbers
that they are made on (Higham and Mary, SIAM J. Sci. Comput. 41, 2019): here LARGEST_LOGIT at most.
So far an answer may be from the exact one, and two answers twice as far from each other. That the
checkpoints amplify rounding no more than this is held to float64 (checks.near_the_exact_answer).
"""

from __future__ import annotations

import math

from tests.equivalence import workloads
from tests.equivalence.checkpoints import SPECS
from weights.spec import ModelSpec

UNIT_ROUNDOFF = 2.0**-24  # of float32
LARGEST_LOGIT = 9.0  # of the checkpoints that are used here; asserted of each


def roundings(spec: ModelSpec, context: int) -> int:
    """Terms of the sums that an answer after ``context`` tokens has gone through, one after the
    other: per layer two norms, the products, the sum of the softmax; at last the softmax of logits.
    """
    hidden, width = spec.hidden_size, spec.attention.num_query_heads * spec.attention.head_dim
    attention = 2 * hidden + spec.attention.head_dim + 2 * context + width
    mlp = 2 * hidden + spec.mlp.intermediate_size
    return spec.num_layers * (attention + mlp) + 2 * hidden + spec.vocab_size


def from_exact(spec: ModelSpec, context: int) -> float:
    """Nats that a float32 answer may be away from the exact one."""
    return math.sqrt(roundings(spec, context)) * UNIT_ROUNDOFF * LARGEST_LOGIT


FROM_EXACT = max(from_exact(spec, workloads.LONGEST) for spec in SPECS.values())
APART = 2 * FROM_EXACT  # nats that two float32 answers to one request may be apart

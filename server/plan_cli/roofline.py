"""The least time of a step on a device: memory traffic at its bandwidth, or products at its rate.

A decode step reads every matrix that its tokens pass, once for the whole batch, and each sequence's
keys and values. A prompt is computed in chunks, each of which reads the matrices again. Several
ranks share both evenly; what they tell each other is left out. Products run in 16 bits: quantised
weights are widened, and for float32 no rate is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.memory.flops import expert_elements, token_flops
from server.memory.kinds import MemoryKind
from server.memory.kv_groups import layer_kv_bytes
from server.plan_cli.make import Plan
from server.units import ceil_div
from weights.formats import QUANTISED, get_format
from weights.inventory import Component, held_format
from weights.tensor_parallel import rank_spec


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step's two sides, None where the device's figure is unknown."""

    name: str
    tokens: int  # that the step gives or takes in
    flops: int  # of all ranks together
    reads: tuple[tuple[str, int], ...]  # of one rank: what, and its bytes
    memory_seconds: float | None
    compute_seconds: float | None

    @property
    def read_bytes(self) -> int:
        return sum(nbytes for _, nbytes in self.reads)

    @property
    def seconds(self) -> float | None:
        known = [s for s in (self.memory_seconds, self.compute_seconds) if s is not None]
        return max(known, default=None)

    @property
    def bound(self) -> str | None:
        """What the step waits for, memory or compute; None where one of them is unknown."""
        if self.memory_seconds is None or self.compute_seconds is None:
            return None
        return "memory" if self.memory_seconds >= self.compute_seconds else "compute"


def decode_step(plan: Plan, batch: int, length: int) -> StepTime:
    """One token for each of ``batch`` sequences that hold ``length`` tokens."""
    flops = batch * token_flops(plan.model.spec).decode(length)
    reads = (weight_traffic(plan, batch), batch * kv_traffic(plan, length))
    return _timed(plan, f"decode, batch {batch}, at {length} tokens", batch, flops, *reads)


def prefill_step(plan: Plan, length: int) -> StepTime:
    """One prompt of ``length`` tokens, in as many chunks as it needs."""
    chunk = plan.config.scheduler.max_num_batched_tokens
    chunks = ceil_div(length, chunk)
    flops = token_flops(plan.model.spec).prefill(length)
    context = sum(kv_traffic(plan, min(length, (i + 1) * chunk)) for i in range(chunks))
    weights = chunks * weight_traffic(plan, min(chunk, length))
    return _timed(plan, f"prefill of {length} tokens", length, flops, weights, context)


def weight_traffic(plan: Plan, tokens: int) -> int:
    """Bytes of weights that one rank reads for a step of ``tokens`` tokens.

    Of the experts, as many as so many tokens are expected to choose; of the embedding, rows alone.
    """
    spec, held_as = plan.model.spec, plan.config.model
    nbytes = plan.memory.layout.bytes(MemoryKind.WEIGHTS)
    by_component = plan.memory.layout.weights
    if not spec.tied_unembedding:
        nbytes -= by_component[Component.EMBEDDING]
    for table in (Component.POSITION, Component.LAYER_INPUTS):
        nbytes -= by_component.get(table, 0)
    if spec.experts is not None:
        count, chosen = spec.experts.count, spec.experts.chosen
        idle = count * (1 - chosen / count) ** tokens  # experts that no token is expected to choose
        held = held_format(Component.UP, held_as.format, held_as.quantization)
        nbytes -= int(idle * expert_elements(spec) * _width(held) / held_as.ranks)
    return nbytes


def kv_traffic(plan: Plan, length: int) -> int:
    """Bytes of keys and values that one rank reads for a token that sees ``length`` tokens."""
    spec = rank_spec(plan.model.spec, plan.config.model.ranks)
    return sum(
        layer_kv_bytes(spec, layer, plan.config.cache.format)
        * (min(length, spec.window(layer)) if spec.window(layer) else length)
        for layer in range(spec.num_layers)
    )


def _width(format: str) -> float:
    """Bytes of an element; a quantised one without its scales."""
    if format in QUANTISED:
        return QUANTISED[format].bits / 8
    return get_format(format).bytes_per_element


def _timed(plan: Plan, name: str, tokens: int, flops: int, weights: int, context: int) -> StepTime:
    device = plan.target.device
    bandwidth = None if device is None else device.bandwidth
    rate = None if device is None else device.flops_16bit
    if get_format(plan.config.model.format).bytes_per_element != 2:
        rate = None
    read = weights + context
    return StepTime(
        name=name,
        tokens=tokens,
        flops=flops,
        reads=(("weights", weights), ("keys and values", context)),
        memory_seconds=None if bandwidth is None else read / bandwidth,
        compute_seconds=None if rate is None else flops / plan.config.model.ranks / rate,
    )

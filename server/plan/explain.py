"""How the lines beside the split come about, with the numbers put in."""

from __future__ import annotations

from collections.abc import Iterator

from server.memory.kv_groups import layer_kv_bytes, windows_of
from server.plan.flops import TokenFlops, token_flops
from server.plan.make import Plan
from server.plan.roofline import kv_traffic, weight_traffic
from weights.census import census
from weights.inventory import tally
from weights.ranks import rank_spec
from weights.spec import ModelSpec


def line_formulas(plan: Plan) -> dict[str, str]:
    """By line: of the census, the sequences, the FLOPs and the least times."""
    spec = plan.model.spec
    flops, length = token_flops(spec), plan.memory.max_model_len
    return {
        **{f"census.{name}": formula for name, formula in _census(spec)},
        "sequences": _sequences(plan),
        "largest length": "the largest --max-model-len for which the same plan, made again, fits",
        "what if": "the same plan, made again with these formats and so many ranks",
        **_flops(flops, length),
        **_times(plan, length),
    }


def _census(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """Sums of (how many alike) x (shape)."""
    for component in census(spec).components:
        alike = [
            f"{times} x {' x '.join(str(n) for n in parameter.shape)}"
            + (f" ({parameter.heads} heads each)" if parameter.heads else "")
            for parameter, times in tally(spec).items()
            if parameter.component is component
        ]
        yield str(component), " + ".join(alike)


def _sequences(plan: Plan) -> str:
    spec, request = rank_spec(plan.model.spec, plan.request.ranks), plan.request
    token = layer_kv_bytes(spec, request.kv_format or request.format)
    per_layer = []
    for window in windows_of(spec):
        layers = sum(spec.window(layer) == window for layer in range(spec.num_layers))
        blocks = f"ceil(length / {request.block_size})"
        if window:
            blocks = f"min({blocks}, ceil({window - 1} / {request.block_size}) + 1)"
        per_layer.append(f"{layers} layers x {blocks}")
    total = plan.memory.kv.total_bytes
    return (
        f"a token keeps {token} B in a layer; a sequence takes ({' + '.join(per_layer)}) x "
        f"{request.block_size} tokens x {token} B; {total} B hold so many whole ones"
    )


def _flops(flops: TokenFlops, length: int) -> dict[str, str]:
    spec = flops.spec
    channels = spec.attention.query_size
    seen = flops.attention(length) // (4 * channels)
    layers = 2 * flops.layers
    logits = f"2 x {spec.vocab_size} x {spec.hidden_size} = {2 * flops.logits}"
    return {
        "FLOPs.layers": f"2 x {flops.layers} matrix elements that a token passes = {layers}",
        "FLOPs.logits": logits,
        "FLOPs.attention": (
            f"(2 for scores + 2 for values) x {channels} channels of query heads x {seen} tokens "
            f"seen in all layers = {flops.attention(length)}"
        ),
        "FLOPs.decode": f"layers + logits + attention = {flops.decode(length)}",
        "FLOPs.prefill": (
            f"({length} x layers + logits + 4 x {channels} x tokens seen by all of them) / "
            f"{length} = {flops.prefill(length) // length}"
        ),
    }


def _times(plan: Plan, length: int) -> dict[str, str]:
    device, ranks = plan.target.device, plan.request.ranks
    bandwidth = None if device is None else device.bandwidth
    rate = None if device is None else device.flops_16bit
    if bandwidth is None or rate is None:
        return {"least time": "unknown: this device's bandwidth and rate are not in the table"}
    read, kept = weight_traffic(plan, 1), kv_traffic(plan, length)
    return {
        "least time": (
            f"the larger of memory read / {bandwidth:.4g} B/s and FLOPs / {ranks} ranks / "
            f"{rate:.4g} FLOP/s; a decode step reads weights ({read} B for one token) + keys and "
            f"values of each sequence ({kept} B at {length} tokens)"
        )
    }

"""How the lines beside the split come about, with the numbers put in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.memory.flops import AttentionFlops, TokenFlops, token_flops
from server.memory.kv_groups import layer_groups, layer_kv_bytes, windows_of
from server.plan_cli.capacity import largest_max_model_len
from server.plan_cli.make import Plan
from server.plan_cli.roofline import StepTime
from weights.census import census
from weights.inventory import tally
from weights.spec import ModelSpec
from weights.tensor_parallel import rank_spec


def line_formulas(plan: Plan, steps: Sequence[StepTime]) -> dict[str, str]:
    """By line: of the census, the sequences, the FLOPs and the least times of ``steps``."""
    spec = plan.model.spec
    flops, length = token_flops(spec), plan.memory.max_model_len
    return {
        **{f"census.{name}": formula for name, formula in _census(spec)},
        "sequences": _sequences(plan),
        "largest length": "the largest --max-model-len for which the same plan, made again, fits: "
        f"{largest_max_model_len(plan)}",
        "what if": "the same plan, made again with these formats and so many ranks",
        **_flops(flops, length),
        **_times(plan, steps),
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
    spec, cache = rank_spec(plan.model.spec, plan.config.model.ranks), plan.config.cache
    kv, total = plan.memory.kv, plan.memory.kv.total_bytes
    kept = {window: layer_kv_bytes(spec, first, cache.format) for window, first in _first(spec)}
    (token, *unlike), of = dict.fromkeys(kept.values()), "layers"
    slots = f"x {cache.block_size} tokens x {token} B"
    line = f"a token keeps {token} B in a layer"
    if unlike:
        line = "a token keeps " + " and ".join(
            f"{nbytes} B in a layer {f'with a window of {window}' if window else 'that sees all'}"
            for window, nbytes in kept.items()
        )
        of, slots = "groups", f"x {cache.block_size} tokens x {kv.groups[0].bytes_per_token} B"
        line += ", and a block of a group of layers is a page"
    line += f"; a sequence takes ({_blocks(plan, spec, 1, of)}) {slots}"
    if not any(windows_of(spec)):
        return f"{line}; {total} B hold so many whole ones"
    chunk = _blocks(plan, spec, plan.config.scheduler.max_num_batched_tokens, of)
    return f"{line}; while a step computes its prompt, ({chunk}); {total} B hold one so and others"


def _first(spec: ModelSpec) -> Iterator[tuple[int, int]]:
    """The windows of the model, and the first layer with each."""
    for window in windows_of(spec):
        yield window, next(i for i in range(spec.num_layers) if spec.window(i) == window)


def _blocks(plan: Plan, spec: ModelSpec, chunk: int, of: str) -> str:
    """A sequence's blocks over all layers, or groups of these, while so many tokens of it are
    computed."""
    size, per_layer = plan.config.cache.block_size, []
    for window in windows_of(spec):
        groups = layer_groups(spec)
        counted = [one for layers in groups for one in (layers[:1] if of == "groups" else layers)]
        count = sum(spec.window(layer) == window for layer in counted)
        blocks = f"ceil(length / {size})"
        if window:
            blocks = f"min({blocks}, ceil({window + chunk - 2} / {size}) + 1)"
        per_layer.append(f"{count} {of} x {blocks}")
    return " + ".join(per_layer)


def _flops(flops: TokenFlops, length: int) -> dict[str, str]:
    spec = flops.spec
    decoded = _attention(flops.decode_attention(length), "tokens seen")
    prompt = _attention(flops.prompt_attention(length), "tokens seen by all of them")
    layers = 2 * flops.layers
    logits = f"2 x {spec.vocab_size} x {spec.table_width} = {2 * flops.logits}"
    return {
        "FLOPs.layers": f"2 x {flops.layers} matrix elements that a token passes = {layers}",
        "FLOPs.logits": logits,
        "FLOPs.attention": f"{decoded} = {flops.attention(length)}",
        "FLOPs.decode": f"layers + logits + attention = {flops.decode(length)}",
        "FLOPs.prefill": (
            f"({length} tokens x {layers} + logits {2 * flops.logits} + {prompt}) / {length} = "
            f"{flops.prefill(length) // length}, rounded down"
        ),
    }


def _attention(kinds: Sequence[AttentionFlops], seen: str) -> str:
    where = "in all layers" if len(kinds) == 1 else "in all layers with such heads"
    return " + ".join(
        f"(2 x {kind.scores} channels of scores + 2 x {kind.values} of values) "
        f"x {kind.seen} {seen} {where}"
        for kind in kinds
    )


def _times(plan: Plan, steps: Sequence[StepTime]) -> dict[str, str]:
    device, ranks = plan.target.device, plan.config.model.ranks
    bandwidth = None if device is None else device.bandwidth
    rate = None if device is None else device.flops_16bit
    if bandwidth is None or rate is None:
        return {"least time": "unknown: this device's bandwidth and rate are not in the table"}
    at_rate = f"FLOPs / {rate:.5g} FLOP/s"
    if ranks > 1:
        at_rate = f"FLOPs / {ranks} ranks / {rate:.5g} FLOP/s"
    general = f"the larger of bytes read / {bandwidth:.5g} B/s and {at_rate}"
    if any(step.compute_seconds is None for step in steps):
        general += "; for float32 no rate is assumed"
    return {"least time": general, **{f"least time {n}": _read(s) for n, s in enumerate(steps, 1)}}


def _read(step: StepTime) -> str:
    read = " + ".join(f"{name} {nbytes}" for name, nbytes in step.reads)
    return f"{step.name}: reads {read} = {step.read_bytes} B; {step.flops} FLOPs"

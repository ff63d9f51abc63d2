"""A plan as plain data: what --json prints, and what the text is made from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.memory.flops import token_flops
from server.plan_cli.capacity import (
    LengthCapacity,
    by_length,
    bytes_per_token,
    largest_max_model_len,
)
from server.plan_cli.explain import line_formulas
from server.plan_cli.grid import what_if
from server.plan_cli.make import Plan
from server.plan_cli.roofline import StepTime, decode_step, prefill_step
from server.plan_cli.split import (
    ESTIMATED,
    memory_in_use,
    memory_split,
    rule_of_thumb,
    split_formulas,
    weights_share,
)
from weights.census import census


def answer(plan: Plan, *, explain: bool = False) -> dict[str, Any]:
    """JSON-ready. Bytes, tokens, seconds, FLOPs; formulas where ``explain`` asks for them."""
    split = memory_split(plan)
    lengths = by_length(plan.memory) if plan.fits else []
    components, total, everything = _census(plan)
    timed = steps(plan, lengths)
    result: dict[str, Any] = {
        "model": plan.model.name,
        "device": plan.target.name,
        "fits": plan.fits,
        "suggestions": [
            {
                "change": change.option,
                "factor": round(change.factor, 3),
                "available_bytes": change.available_bytes,
            }
            for change in plan.changes
        ],
        "refusal": _refusal(plan),
        "request": _request(plan),
        "census": components,
        "total": total,
        "everything": everything,
        "total_bytes": plan.target.total_bytes,
        "available_bytes": plan.target.placement.available,
        "split": split,
        "in_use_bytes": sum(memory_in_use(split).values()),
        "estimated": [str(kind) for kind in ESTIMATED if split[kind]],
        "weights_share": {"ratio": weights_share(split), "says": rule_of_thumb(split)},
        "capacity": _capacity(plan, lengths),
        "what_if": [
            {
                "weights": cell.weights,
                "kv": cell.kv,
                "tensor_parallel_size": cell.ranks,
                "length": cell.length,
                "possible": cell.possible,
                "fits": cell.fits,
                "sequences": cell.held,
            }
            for cell in what_if(plan)
        ],
        "flops": _flops(plan),
        "roofline": [_step(step) for step in timed],
        "source": plan.model.source,
        "notes": list(plan.notes),
    }
    if explain:
        result["formulas"] = {**split_formulas(plan), **line_formulas(plan, timed)}
    return result


def steps(plan: Plan, lengths: list[LengthCapacity]) -> list[StepTime]:
    """A token alone, a full batch, and a prompt: at the lengths of the capacity table's middle."""
    length = plan.memory.max_model_len
    found = [decode_step(plan, 1, length)]
    for line in lengths[len(lengths) // 2 :][:1]:
        batch = min(line.held, plan.config.scheduler.max_num_seqs)
        if batch > 1:
            found.append(decode_step(plan, batch, line.length))
    found.append(prefill_step(plan, min(length, 2048)))
    return found


def _request(plan: Plan) -> dict[str, Any]:
    args, config = plan.args, plan.config
    return {
        "format": config.model.format,
        "quantization": config.model.quantization,
        "kv_format": config.cache.format,
        "tensor_parallel_size": config.model.ranks,
        "max_model_len": args.max_model_len,
        "max_num_seqs": config.scheduler.max_num_seqs,
        "sequences_at_once": args.least_sequences,
        "max_num_batched_tokens": config.scheduler.max_num_batched_tokens,
        "block_size": config.cache.block_size,
        "kv_cache_bytes": args.kv_cache_memory,
    }


def _refusal(plan: Plan) -> dict[str, Any] | None:
    if plan.refusal is None:
        return None
    refusal = plan.refusal
    return {
        "message": str(refusal),
        "kind": str(refusal.kind),
        "bytes": refusal.nbytes,
        "over_bytes": refusal.over,
        "would_start": plan.start is not None,
        "held_at_once": int(plan.start.concurrent_sequences) if plan.start else 0,
    }


def _census(plan: Plan) -> tuple[dict[str, Any], dict[str, int], dict[str, Any]]:
    """By component, of the whole model as held; the matrices' total; and everything's, with the
    convention that it is counted by."""
    counts = census(plan.model.spec)
    parts = plan.target.placement.backend.parts
    nbytes = parts.weights(plan.model.spec, replace(plan.config.model, ranks=1))
    components = {
        str(component): {
            "matrices": count.matrices,
            "parameters": count.parameters,
            "bytes": nbytes[component],
        }
        for component, count in counts.components.items()
    }
    total = {
        "matrices": counts.matrices,
        "parameters": counts.matrix_parameters,
        "bytes": sum(line["bytes"] for line in components.values() if line["matrices"]),
    }
    everything = {
        "parameters": counts.parameters,
        "bytes": sum(nbytes.values()),
        "convention": (
            "tied unembedding counted once"
            if plan.model.spec.tied_unembedding
            else "embedding and unembedding counted apart"
        ),
    }
    return components, total, everything


def _capacity(plan: Plan, lengths: list[LengthCapacity]) -> dict[str, Any]:
    kv = plan.memory.kv
    return {
        "max_model_len": plan.memory.max_model_len,
        "model_max_len": plan.memory.model_max_len,
        "largest_max_model_len": largest_max_model_len(plan),
        "kv_tokens": plan.memory.capacity_tokens if plan.fits else 0,
        "kv_blocks": kv.num_blocks if plan.fits else 0,
        "kv_bytes_per_token": bytes_per_token(plan),
        "set_by": plan.memory.pool_limit if plan.fits else None,
        "max_num_seqs": plan.config.scheduler.max_num_seqs,
        "sequences": [
            {"length": line.length, "sequences": line.held, "bytes_each": line.bytes_each}
            for line in lengths
        ],
    }


def _flops(plan: Plan) -> dict[str, Any]:
    """Per token; attention's part grows with length, and is given at max_model_len."""
    flops, length = token_flops(plan.model.spec), plan.memory.max_model_len
    return {
        "length": length,
        "matrices_per_token": 2 * flops.layers,
        "logits_per_token": 2 * flops.logits,
        "attention_per_token": flops.attention(length),
        "attention_per_token_and_context_token": flops.attention(1),
        "decode_per_token": flops.decode(length),
        "prefill_per_token": flops.prefill(length) // length,
        "parameters_passed": flops.layers + flops.logits,
    }


def _step(step: StepTime) -> dict[str, Any]:
    return {
        "step": step.name,
        "tokens": step.tokens,
        "flops": step.flops,
        "read_bytes": step.read_bytes,
        "memory_seconds": step.memory_seconds,
        "compute_seconds": step.compute_seconds,
        "seconds": step.seconds,
        "bound": step.bound,
    }

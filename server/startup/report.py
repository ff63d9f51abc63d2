"""The start-up report: one readable block that says what is served, and what it takes."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import server
from server.config.server_config import ServerConfig
from server.ipc.engine_info import EngineInfo
from server.memory.accounting.reading import MemoryReading
from server.memory.backends.record import Backend
from server.memory.backends.registry import backend_named
from server.memory.planner.plan import MemoryPlan
from server.memory.report.startup import start_report
from server.startup.descriptors import ConnectionLimits
from server.startup.listener import reachable
from server.startup.model_info import ModelInfo
from weights.generation import end_of_sequence_source
from weights.spec import PositionKind, RopeScaling

log = logging.getLogger("quire.server")


@dataclass(frozen=True, slots=True)
class ReportInput:
    """All that the report tells. ``reading`` is the accountant's first after the start,
    None where that is not there yet."""

    config: ServerConfig
    model: ModelInfo
    engine: EngineInfo
    reading: MemoryReading | None
    defaults: Mapping[str, object]
    address: str  # http://host:port
    no_chat: str  # why there is no chat, or ""
    seconds: float  # from the command to ready
    connections: ConnectionLimits


def print_report(report: str) -> None:
    """A reader that has gone, or a full disk, does not keep the server from serving."""
    try:
        print(report, flush=True)
    except OSError as error:
        log.warning("the start-up report could not be printed: %s", error.strerror)
        with contextlib.suppress(OSError):
            sys.stdout.close()  # what it still holds would fail again at the exit


def determinism(format: str, backend: Backend, *, batch_invariant: bool = False) -> str:
    """What equal requests may expect of each other, whatever shares their batch."""
    if batch_invariant or backend.bit_equal:
        return "equal requests get equal tokens and log-probabilities, bit for bit, in any batch"
    if format == "f32":
        return (
            "equal requests get equal tokens but for ties within float32 rounding, "
            "log-probabilities up to it"
        )
    return (
        "equal requests get equal tokens but for near ties: sums round to 16 bits, and how they "
        f"are grouped depends on the batch ({backend.equal_bits})"
    )


def served_determinism(plan: MemoryPlan) -> str:
    """What the server that runs this plan guarantees."""
    return determinism(
        plan.config.model.format,
        backend_named(plan.config.model.backend),
        batch_invariant=plan.config.model.batch_invariant,
    )


def device_name(plan: MemoryPlan) -> str:
    """As --device says it."""
    return backend_named(plan.config.model.backend).device


def version_report(config: ServerConfig, model: ModelInfo) -> dict[str, str]:
    """What /version answers."""
    return {
        "version": server.__version__,
        "model": config.model_name,
        "dtype": model.plan.config.model.format,
        "device": device_name(model.plan),
        "backend": model.plan.config.model.backend,
        "system_fingerprint": model.fingerprint,
        "determinism": served_determinism(model.plan),
    }


def startup_report(facts: ReportInput) -> str:
    """The block, without a last line break."""
    lines = [
        f"Quire serves {facts.config.model_name} at {facts.address}",
        f"  open {facts.address}/ in a browser: memory and latencies live, and a playground",
        *_listening(facts.config.host),
        "",
    ]
    lines += [f"  {name:<14}{text}" for name, text in _facts(facts)]
    lines += ["", *(f"  {line}" for line in _memory(facts))]
    lines += ["", *(f"  {line}" for line in _endpoints(facts))]
    return "\n".join(line.rstrip() for line in lines)


def _listening(host: str) -> list[str]:
    """Who else can reach it, where that is everybody."""
    if reachable(host) == host:
        return []
    return [f"  listens on every address of this machine ({host}), without authentication"]


def _facts(facts: ReportInput) -> list[tuple[str, str]]:
    model, plan, engine = facts.model, facts.model.plan, facts.engine
    spec, config = model.spec, plan.config
    shape = (
        f"{spec.family}, {spec.num_layers} layers, hidden {spec.hidden_size}, "
        f"{spec.heads_in_words}, vocabulary {spec.vocab_size}"
    )
    length = f"{plan.max_model_len} tokens"
    if plan.max_model_len < plan.model_max_len:
        length += f" (the model could take {plan.model_max_len})"
    pairs = [
        ("model", shape),
        ("parameters", f"{model.num_parameters:,}" + _tied(facts)),
        ("dtype", f"{config.model.format}{_widened(facts)}{_quantised(facts)}, on {_device(facts)} "
         f"({engine.cpu_capability}), {engine.num_threads} threads, torch {engine.torch_version}"),
        ("backend", "; not ".join((config.model.backend, *model.placement.passed_over))),
        *([("dtype auto", model.dtype_reason)] if model.dtype_reason else []),
        ("max length", length),
        ("KV cache", f"{plan.capacity_tokens:,} tokens in {plan.kv.num_blocks:,} blocks of "
         f"{config.cache.block_size}{_kv_format(facts)}: {plan.concurrent_sequences:.1f} sequences "
         f"of {plan.max_model_len} at once (set by {plan.pool_limit})"),
        ("batch", f"{config.scheduler.max_num_seqs} sequences, "
         f"{config.scheduler.max_num_batched_tokens} tokens a step"),
        ("sampling", _defaults(facts)),
        ("ends at ids", _ends(facts)),
        ("rope", _rope(facts)),
        ("determinism", served_determinism(plan)),
        ("ready in", f"{facts.seconds:.1f} s (weights {engine.load_seconds:.1f} s)"),
    ]  # fmt: skip
    if engine.kernel_cache is not None:
        pairs.append(("GPU kernels", f"compiled ones are kept in {engine.kernel_cache}"))
    limits = facts.connections
    if limits.note:
        few = f"{limits.ordinary} at once, and {limits.probes} for probes: {limits.note}"
        pairs.append(("connections", few))
    if engine.skipped:
        pairs.append(("skipped", "; ".join(engine.skipped[:4])))
    if model.unread_keys:
        pairs.append(("unread keys", "config.json: " + ", ".join(model.unread_keys[:8])))
    return pairs


def _device(facts: ReportInput) -> str:
    return device_name(facts.model.plan)


def _quantised(facts: ReportInput) -> str:
    quantization = facts.model.plan.config.model.quantization
    return "" if quantization is None else f", matrices in {quantization}"


def _kv_format(facts: ReportInput) -> str:
    held = facts.model.plan.config
    return "" if held.cache.format == held.model.format else f" in {held.cache.format}"


def _widened(facts: ReportInput) -> str:
    held, stored = facts.model.plan.config.model.format, facts.model.checkpoint_format
    return "" if held == stored else f" (the checkpoint's is {stored}; --dtype chooses)"


def _tied(facts: ReportInput) -> str:
    return " (tied unembedding counted once)" if facts.model.spec.tied_unembedding else ""


def _defaults(facts: ReportInput) -> str:
    source = "generation_config.json" if facts.model.generation_config else "OpenAI's"
    if facts.config.generation_config == "none":
        source = "OpenAI's"
    values = ", ".join(f"{name} {value}" for name, value in facts.defaults.items())
    return f"{values} (where a request leaves them out; {source})"


def _ends(facts: ReportInput) -> str:
    model = facts.model
    ids = ", ".join(str(token) for token in model.eos_token_ids) or "none"
    return f"{ids} ({end_of_sequence_source(model.config, model.generation_config)})"


def _rope(facts: ReportInput) -> str:
    spec = facts.model.spec
    if spec.position is not PositionKind.ROTARY:
        return "none: ALiBi" if spec.position is PositionKind.ALIBI else "none: learned positions"
    if spec.rope.scaling is RopeScaling.NONE:
        return f"theta {spec.rope.theta:g}, no scaling"
    return (
        f"theta {spec.rope.theta:g}, {spec.rope.scaling} x {spec.rope.factor:g}, fixed for "
        f"{facts.model.plan.max_model_len} tokens"
    )


def _memory(facts: ReportInput) -> list[str]:
    plan = facts.model.plan
    return start_report(
        _device(facts), plan.kinds, plan.layout.weights, facts.engine.weights, facts.reading
    )


def _endpoints(facts: ReportInput) -> list[str]:
    chat = "/v1/chat/completions"
    if facts.no_chat:
        chat = f"({facts.no_chat}: no {chat})"
    return [
        f"POST /v1/completions {chat}",
        "GET  / (web UI) /v1/models /health /ready /version /metrics /memory /docs /openapi.json",
        f"memory, line by line: curl '{facts.address}/memory?format=text'",
        "",
        "try:",
        f"curl {facts.address}/v1/completions -H 'Content-Type: application/json' \\",
        f'  -d \'{{"model": "{facts.config.model_name}", "prompt": "def add(a, b):", '
        '"max_tokens": 48, "temperature": 0.7, "seed": 1}\'',
    ]

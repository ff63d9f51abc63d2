"""Where the model runs, and what follows from that for the sizes left to auto. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from server.config.options import CPU_LEVEL
from server.config.server_config import ServerConfig
from server.errors import StartupError
from server.memory.accounting.process import machine_memory
from server.memory.backends.record import Backend, FoundDevice, Unusable
from server.memory.backends.registry import AUTO, backend_named, backends, candidates
from server.memory.backends.words import dtype_name, places, server_of
from server.memory.engine_args import EngineArgs, refuse_few_tokens
from server.memory.planner.resolve_args import format_of, num_seqs
from server.startup.api_memory import api_memory
from server.startup.supported_models import unserved_by
from weights.spec import ModelSpec

Find = Callable[[Backend], FoundDevice]  # raises Unusable


@dataclass(frozen=True, slots=True)
class Placement:
    """``available`` are bytes for weights, cache and buffers, ``api_memory`` those of the host that
    clients of the API may make it hold. ``passed_over`` says of each backend that comes before this
    one why it does not serve."""

    backend: Backend
    found: FoundDevice
    available: int
    api_memory: int
    passed_over: tuple[str, ...]


def place(
    config: ServerConfig, model: ModelSpec | None = None, *, find: Find = Backend.find_device
) -> Placement:
    """Chooses the backend for --device.

    auto takes the first device that can be used. Of the backends of a device the first serves that
    can be used, takes the options and has what ``model`` needs; without a model, anything.

    Raises:
        StartupError: the device is not there or not served, or no backend of it takes an option or
            serves the model.
    """
    args, device = config.engine, None
    _refuse_level(args)
    passed_over: list[str] = []
    reasons: list[str] = []
    refusal: StartupError | None = None
    for backend in _asked(args):
        if device not in (None, backend.device):
            continue
        try:
            found = find(backend)
            backend.check_level(args.cpu_level)
        except Unusable as unusable:
            reasons.append(str(unusable))
            passed_over.append(f"{backend.name}: {unusable}")
            continue
        device = backend.device
        try:
            _refuse_options(args, backend)
            if model is not None:
                refuse_model(model, backend)
        except StartupError as error:
            refusal = error
            passed_over.append(f"{backend.name}: {error}")
            continue
        return _placement(config, backend, found, passed_over)
    raise refusal or _nothing_there(args, reasons)


def _refuse_level(args: EngineArgs) -> None:
    """
    Raises:
        StartupError: a level is asked for that does not run here, or of a backend without levels.
    """
    if args.cpu_level is None:
        return
    variable = f"{CPU_LEVEL.variable}={args.cpu_level}"
    asked = [backend for backend in _asked(args) if backend.level_at is not None]
    if not asked:
        named = " or ".join(each.name for each in backends() if each.level_at is not None)
        raise StartupError(f"{variable} is for --backend {named}: name that too, or leave it out")
    try:
        asked[0].check_level(args.cpu_level)
    except Unusable as unusable:
        raise StartupError(f"{variable}: {unusable}") from unusable


def _asked(args: EngineArgs) -> tuple[Backend, ...]:
    """
    Raises:
        StartupError: --backend names one that is not the device's.
    """
    if args.backend is None:
        return candidates(args.device)
    backend = backend_named(args.backend)
    if args.device not in (AUTO, backend.device):
        raise StartupError(
            f"--backend {backend.name} computes on {backend.place}, and --device is {args.device}:"
            f" leave one of them out"
        )
    return (backend,)


def _placement(
    config: ServerConfig, backend: Backend, found: FoundDevice, passed_over: Iterable[str]
) -> Placement:
    # One reading of the host's memory for both, so that a split of it adds up.
    free = machine_memory()[1] if backend.own_memory else found.free
    api = api_memory(config.api_memory, free, config.max_body_size)
    available = found.available if backend.own_memory else max(0, found.available - api)
    return Placement(backend, found, available, api, tuple(passed_over))


def refuse_model(model: ModelSpec, backend: Backend) -> None:
    """
    Raises:
        StartupError: the backend lacks an operation that the model needs, or has it for smaller
            models only; names it.
    """
    problem = unserved_by(backend, model)
    if problem is None:
        return
    others = [each for each in candidates(AUTO) if each.device != backend.device]
    serving = next((each for each in reversed(others) if unserved_by(each, model) is None), None)
    elsewhere = "" if serving is None else f"; --device {serving.device} serves it"
    raise StartupError(f"this model cannot run on {backend.place}: {problem}{elsewhere}")


def _refuse_options(args: EngineArgs, backend: Backend) -> None:
    here, quantization = f"and this server computes on {backend.place}", args.quantization
    if quantization is not None and quantization not in backend.quantisations:
        serving = server_of(lambda each: quantization in each.quantisations, backend.device)
        raise StartupError(
            f"--quantization {quantization} needs {serving}, {here} with {backend.name}: leave it "
            "out, or take --dtype bfloat16 for half of float32's bytes"
        )
    kv_format = args.kv_cache_dtype
    is_models = args.dtype != AUTO and kv_format == format_of(args.dtype)
    if kv_format is not None and kv_format not in backend.kv_formats and not is_models:
        serving = server_of(lambda each: kv_format in each.kv_formats, backend.device)
        raise StartupError(
            f"--kv-cache-dtype {dtype_name(kv_format)} needs {serving}, {here} with "
            f"{backend.name}: leave it out, and the KV cache is in --dtype's format"
        )
    if args.batch_invariant and not backend.batch_invariant:
        serving = server_of(lambda each: each.batch_invariant, backend.device)
        raise StartupError(
            f"--batch-invariant needs {serving}, {here}: leave it out; {backend.equal_bits} there"
        )
    if args.max_num_batched_tokens is not None:
        refuse_few_tokens(args.max_num_batched_tokens, num_seqs(args, backend))


def _nothing_there(args: EngineArgs, reasons: Iterable[str]) -> StartupError:
    device, why = args.device, "; ".join(reasons)
    if args.backend is not None:
        return StartupError(f"--backend {args.backend}: {why}; leave it out for the default")
    last = candidates(AUTO)[-1]
    missing = places(lambda backend: backend.device == device)
    elsewhere = (
        "" if last.device == device else f"; --device {last.device} serves without {missing}"
    )
    return StartupError(f"--device {device}: {why}{elsewhere}")

"""What a plan, the memory account and the runner need of the native CPU backend. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.backends import NATIVE_CPU
from kernels.cpu.native.levels import chosen_level
from kernels.cpu.native.library import NativeUnavailable, level, library
from kernels.footprint.native_linear import packed_bytes, product_scratch_bytes
from server.engine.engine_config import EngineConfig, ModelConfig
from server.memory.backends.parts import Parts
from server.memory.backends.record import FoundDevice, Unusable
from server.memory.backends.torch_cpu import parts as torch_cpu
from server.memory.intermediates import LOGPROB_TEMPORARY, SAMPLE_TEMPORARY, sample_rows
from server.memory.kinds import Shapes
from server.memory.phases import Phase, logit_phases
from server.memory.program_values import value_places
from weights.inventory import Component, inventory
from weights.loading.fusion import fused_linears
from weights.spec import ModelSpec, NormPlacement


def find_native() -> FoundDevice:
    """This machine. Raises Unusable where its library is not there or cannot be loaded."""
    try:
        library()
    except NativeUnavailable as error:
        raise Unusable(str(error)) from error
    return torch_cpu.find_cpu()


def check_level(asked: str | None) -> None:
    """Raises Unusable where the level, or without a name the one that is taken, does not run."""
    try:
        if asked is None:
            chosen_level()
        else:
            level(asked)
    except NativeUnavailable as error:
        raise Unusable(str(error)) from error


def weights(model: ModelSpec, how: ModelConfig) -> dict[str, int]:
    """Matrices in tiles, each with its padding; all else as its format says."""
    shapes = {parameter.name: parameter for parameter in inventory(model)}
    in_linears: set[str] = set()
    held: dict[str, int] = {}

    def add(component: str, nbytes: int) -> None:
        held[component] = held.get(component, 0) + nbytes

    for linear in fused_linears(model):
        parts = [shapes[f"{part}.weight"] for part in linear.parts]
        channels, inputs = sum(part.shape[0] for part in parts), parts[0].shape[1]
        left = packed_bytes(channels, inputs, how.format)
        for part in parts[:-1]:
            add(str(part.component), part.num_bytes(how.format))
            left -= part.num_bytes(how.format)
        add(str(parts[-1].component), left)  # with the padding
        in_linears |= {f"{name}.weight" for name in linear.parts}
    for name, parameter in shapes.items():
        if name in in_linears:
            continue
        tied = model.tied_unembedding and name == "embedding.weight"
        plain, packed = parameter.num_bytes(how.format), 0
        if tied:
            packed = packed_bytes(parameter.shape[0], parameter.shape[1], how.format)
        add(str(parameter.component), packed or plain)
    return held


def program_buffers(model: ModelSpec, config: EngineConfig) -> Shapes:
    """The values of a step's program, what its products work in, and of weights that are no
    matrices, what is read of them in float32."""
    tokens = config.scheduler.max_num_batched_tokens
    threads = config.model.num_threads
    scratch = max(
        product_scratch_bytes(tokens, inputs, config.model.format, threads)
        for inputs in _inputs(model)
    )
    return (
        ("step_values", (value_places(model).channels, tokens), "f32"),
        ("product_scratch", (scratch,), "u8"),
        ("wide_vectors", (_wide_vectors(model, config.model.format),), "f32"),
    )


def _wide_vectors(model: ModelSpec, format: str) -> int:
    """Numbers of norms and biases that the program reads in float32, where they are held otherwise,
    or with what is added to them."""
    if format == "f32" and not model.norm.weight_offset:
        return 0
    biases = {f"{part}.bias" for linear in fused_linears(model) for part in linear.parts}
    return sum(
        parameter.num_elements
        for parameter in inventory(model)
        if parameter.component is Component.NORM or parameter.name in biases
    )


def _inputs(model: ModelSpec) -> set[int]:
    shapes = {parameter.name: parameter.shape for parameter in inventory(model)}
    return {
        model.table_width,
        *(shapes[f"{linear.parts[0]}.weight"][1] for linear in fused_linears(model)),
    }


def step_phases(
    model: ModelSpec, config: EngineConfig, tokens: int, logit_rows: int
) -> tuple[Phase, ...]:
    """What is made behind the layers; their own values are a buffer."""
    return tuple(_logit_phases(model, config, logit_rows))


def _logit_phases(model: ModelSpec, config: EngineConfig, rows: int) -> Iterator[Phase]:
    vocab, num_top = model.vocab_size, config.scheduler.max_logprobs
    sampled = min(rows, config.scheduler.max_num_seqs)
    picked = 4 * (rows + sampled) * model.hidden_size
    normed = model.norm.placement is not NormPlacement.POST
    ranked, drawn = (min(most, sample_rows(vocab)) * vocab for most in (rows, sampled))
    logits = ("logits", 4 * rows * vocab)
    product: tuple[tuple[str, int], ...] = ()
    if model.embedding_size:  # narrowed first, by a product of its own
        scratch = product_scratch_bytes(
            rows, model.hidden_size, config.model.format, config.model.num_threads
        )
        product = (("product_scratch", scratch),)
    return logit_phases(
        model,
        tokens=0,
        rows=rows + sampled,
        element_bytes=4,
        final_norm=(("normed" if normed else "picked_hidden", picked),),
        logits=(logits, *product),
        logprobs=(
            logits,
            ("logprob_temporary", LOGPROB_TEMPORARY * ranked),
            ("reported", 32 * rows * (1 + num_top)),
        ),
        sample=(
            ("logits", 4 * sampled * vocab),
            ("sample_temporary", SAMPLE_TEMPORARY * drawn),
        ),
    )


def auto_format(model: ModelSpec, stored: str) -> str:
    """The checkpoint's own: every format is multiplied at the speed of its bytes."""
    return stored


PARTS = Parts(
    kernels=NATIVE_CPU,
    accounting=torch_cpu.PARTS.accounting,
    logit_limits=torch_cpu.logit_limits,
    phases=step_phases,
    auto_format=auto_format,
    weights=weights,
    buffers=program_buffers,
)

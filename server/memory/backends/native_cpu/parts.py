"""What a plan, the memory account and the runner need of the native CPU backend. No torch."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from kernels.backends import NATIVE_CPU
from kernels.cpu.native.levels import chosen_level
from kernels.cpu.native.library import NativeUnavailable, level, library
from kernels.footprint.native_linear import (
    channel_bytes,
    packed_bytes,
    product_scratch_bytes,
)
from kernels.footprint.native_sampling import scratch_bytes
from server.engine.engine_config import EngineConfig, ModelConfig
from server.memory.backends.parts import Parts
from server.memory.backends.record import FoundDevice, Unusable
from server.memory.backends.torch_cpu import parts as torch_cpu
from server.memory.intermediates import LOGPROB_TEMPORARY, sample_rows
from server.memory.kinds import Shapes
from server.memory.phases import Phase, logit_phases
from server.memory.program_values import value_places
from weights.formats import tensor_bytes
from weights.inventory import QUANTISABLE, Component, Parameter, inventory, tally
from weights.loading.fusion import fused_linears
from weights.spec import ModelSpec, NormPlacement
from weights.tensor_parallel import rank_shape

# Bytes of a logit that is sampled, beside its own: while penalties change it, the counts and the
# mask of its row (5), the row set apart (4) and what is made of it (19); while a token is chosen,
# counts and mask still, and the row as it was changed (4).
PENALISED = 28
CHOSEN = 9


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


def quantised(model: ModelSpec) -> Container[str]:
    """Every matrix that is multiplied; the unembedding too, which is the embedding where it is
    tied."""
    unembedding = Component.EMBEDDING if model.tied_unembedding else Component.UNEMBEDDING
    return QUANTISABLE | {Component.PROJECTION, unembedding}


def parameter_bytes(model: ModelSpec, parameter: Parameter, how: ModelConfig) -> int:
    """Of a matrix, its channels packed; all else as its format says."""
    if parameter.component not in quantised(model):
        return tensor_bytes(parameter.shape, how.format)
    channels, inputs = parameter.shape
    return channels * channel_bytes(inputs, product_format(how))


def product_format(how: ModelConfig) -> str:
    """What every matrix is packed in."""
    return how.quantization or how.format


def weights(model: ModelSpec, how: ModelConfig) -> dict[str, int]:
    """Matrices in tiles, each with its padding, which counts as its last part's."""
    return dict(_weights(model, how))


@lru_cache(maxsize=16)  # a plan asks for one model's at every size that it tries
def _weights(model: ModelSpec, how: ModelConfig) -> Mapping[str, int]:
    held: dict[str, int] = {}
    of_rank = {
        parameter.name: replace(parameter, shape=rank_shape(parameter, how.ranks))
        for parameter in inventory(model)
    }
    for parameter in of_rank.values():
        nbytes = parameter_bytes(model, parameter, how)
        held[parameter.component] = held.get(parameter.component, 0) + nbytes
    for parts in _matrices(model):
        if parts[-1] not in of_rank:
            continue  # of a layer of experts, which plans alone have
        last = of_rank[parts[-1]]
        channels, inputs = sum(of_rank[part].shape[0] for part in parts), last.shape[1]
        format = product_format(how)
        padding = packed_bytes(channels, inputs, format) - channels * channel_bytes(inputs, format)
        held[last.component] += padding
    return {str(component): nbytes for component, nbytes in held.items()}


def _matrices(model: ModelSpec) -> Iterator[tuple[str, ...]]:
    """Of each packed matrix the parameters that are its rows."""
    for linear in fused_linears(model):
        yield tuple(f"{part}.weight" for part in linear.parts)
    if model.tied_unembedding:
        yield ("embedding.weight",)


def program_buffers(model: ModelSpec, config: EngineConfig) -> Shapes:
    """The values of a step's program, what its products work in, and of weights that are no
    matrices, what is read of them in float32."""
    tokens = config.scheduler.max_num_batched_tokens
    threads = config.model.num_threads
    scratch = max(
        product_scratch_bytes(tokens, inputs, product_format(config.model), threads)
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
    matrices = quantised(model)
    return {parameter.shape[1] for parameter in tally(model) if parameter.component in matrices}


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
            rows, model.hidden_size, product_format(config.model), config.model.num_threads
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
            (
                "sample_temporary",
                max(
                    PENALISED * drawn,
                    CHOSEN * drawn + scratch_bytes(vocab, config.model.num_threads),
                ),
            ),
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
    quantised=quantised,
    weights=weights,
    parameter_bytes=parameter_bytes,
    buffers=program_buffers,
)

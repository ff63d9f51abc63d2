"""The plan is arithmetic: worked examples, the bounds of the pool, refusals with a way out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.config.values import read_size
from server.errors import StartupError
from server.memory.backends.torch_cpu import TORCH
from server.memory.engine_args import EngineArgs
from server.memory.kinds import MemoryKind
from server.memory.planner.formulas import formulas
from server.memory.planner.plan import DoesNotFit
from server.memory.planner.planner import plan_memory, size_memory
from server.memory.planner.resolve_args import resolve_engine
from weights.spec import (
    Activation,
    AttentionSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    PositionKind,
    RopeSpec,
)

MIB, GIB = 2**20, 2**30
MODEL = ModelSpec(
    family="llama",
    architecture="LlamaForCausalLM",
    vocab_size=1000,
    hidden_size=64,
    num_layers=4,
    attention=AttentionSpec(8, 2, 8, 8**-0.5),
    mlp=MlpSpec(128, Activation.SILU, gated=True),
    norm=NormSpec(NormKind.RMS, 1e-5),
    position=PositionKind.ROTARY,
    max_positions=1024,
    tied_unembedding=True,
    parameter_dtype="f32",
    rope=RopeSpec(dim=8),
)
ASKED = EngineArgs(
    device="cpu", dtype="float32", block_size=16, max_num_seqs=8, max_num_batched_tokens=128
)
# One token: 4 layers x (K and V) x 2 heads x 8 channels x 4 bytes.
TOKEN = 4 * 2 * 2 * 8 * 4


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("kv_format", [None, "bf16", "int8", "fp8"])
@pytest.mark.parametrize("windows", [(), (0, 32, 32, 32)], ids=["full", "windows"])
def test_a_larger_pool_takes_its_pages_and_nothing_else(
    backend: str, kv_format: str | None, windows: tuple[int, ...]
) -> None:
    """So what weights and buffers leave is known before the pool is: not a byte more is planned."""
    model = replace(MODEL, windows=windows)
    asked = replace(ASKED, device=backend, kv_cache_dtype=kv_format, max_model_len=512)
    small, large = (
        size_memory(model, replace(asked, kv_cache_memory=nbytes), 8 * GIB)
        for nbytes in (64 * MIB, GIB)
    )
    for plan in (small, large):
        assert plan.kinds["kv_cache"] == plan.kv.num_blocks * plan.kv.page_bytes
    others = {kind: nbytes for kind, nbytes in small.kinds.items() if kind != "kv_cache"}
    assert others.items() <= large.kinds.items() and small.kv.num_blocks < large.kv.num_blocks
    bounded = size_memory(model, asked, 24 * MIB)
    spare = 24 * MIB - sum(bounded.kinds.values())
    assert spare >= 0 and (backend == "cpu" or spare < bounded.kv.page_bytes)


def test_by_default_the_pool_holds_usual_sequences_and_a_quarter_for_prefixes() -> None:
    plan = plan_memory(MODEL, ASKED, 8 * GIB)
    assert plan.capacity_tokens == 8 * 512 * 5 // 4
    assert plan.kinds["kv_cache"] == plan.capacity_tokens * TOKEN
    assert plan.concurrent_sequences == 5
    assert plan.pool_limit == "max-num-seqs x 512 tokens x 1.25"
    short = plan_memory(replace(MODEL, max_positions=256), ASKED, 8 * GIB)
    assert short.capacity_tokens == 8 * 256 * 5 // 4
    assert short.pool_limit == "max-num-seqs x max-model-len x 1.25"


def test_by_default_the_pool_holds_one_whole_sequence_at_least() -> None:
    plan = plan_memory(replace(MODEL, max_positions=8192), ASKED, 8 * GIB)
    assert plan.max_model_len == plan.capacity_tokens == 8192
    assert plan.pool_limit == "max-model-len"


def test_where_both_sizes_are_given_the_pool_holds_them_and_a_quarter_for_prefixes() -> None:
    plan = plan_memory(MODEL, replace(ASKED, max_num_seqs=8, max_model_len=1024), 8 * GIB)
    assert plan.capacity_tokens == 8 * 1024 * 5 // 4
    assert plan.concurrent_sequences == 10
    assert plan.pool_limit == "max-num-seqs x max-model-len x 1.25"
    one = plan_memory(MODEL, replace(ASKED, max_num_seqs=None, max_model_len=1024), 8 * GIB)
    assert one.capacity_tokens == 32 * 512 * 5 // 4


def test_a_smaller_budget_comes_first() -> None:
    plan = plan_memory(MODEL, replace(ASKED, kv_cache_memory=1024 * TOKEN), 8 * GIB)
    assert plan.capacity_tokens == 1024
    assert plan.pool_limit == "--kv-cache-memory"


def test_a_larger_budget_is_taken_as_it_is() -> None:
    """More than live sequences need is room for prefixes; more than half is the operator's wish."""
    plan = plan_memory(MODEL, replace(ASKED, kv_cache_memory=7 * GIB), 8 * GIB)
    assert plan.kinds["kv_cache"] == 7 * GIB
    assert plan.pool_limit == "--kv-cache-memory"


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("length", [None, 1024])
def test_a_budget_above_what_there_is_is_refused_with_the_figures(
    backend: str, length: int | None
) -> None:
    asked = replace(ASKED, kv_cache_memory=9 * GIB, device=backend, max_model_len=length)
    with pytest.raises(DoesNotFit) as refused:
        size_memory(MODEL, asked, 8 * GIB)
    over = refused.value.over
    assert GIB < over < 1.2 * GIB and refused.value.nbytes == 9 * GIB
    assert "--kv-cache-memory asks for 9.00 GiB" in str(refused.value)
    assert "of 8.00 GiB available" in str(refused.value)
    if length is not None:  # the figures are exact: what is left is taken, and no byte more
        size_memory(MODEL, replace(asked, kv_cache_memory=9 * GIB - over), 8 * GIB)
        with pytest.raises(DoesNotFit, match=r"\b1 B too much"):
            size_memory(MODEL, replace(asked, kv_cache_memory=9 * GIB - over + 1), 8 * GIB)
    with pytest.raises(StartupError, match="what would fit: --kv-cache-memory") as told:
        plan_memory(MODEL, asked, 8 * GIB)
    for text in str(told.value).split("what would fit: ")[1].split(" or "):
        budget = text.split()[-1]
        nbytes = None if budget == "auto" else read_size(budget, 1, 8 * GIB)
        plan = size_memory(MODEL, replace(asked, kv_cache_memory=nbytes), 8 * GIB)
        if nbytes is not None:
            assert nbytes - plan.kv.page_bytes < plan.kinds["kv_cache"] <= nbytes


def test_a_whole_load_holds_every_sequence_at_its_full_length() -> None:
    load = replace(ASKED, max_num_seqs=64, max_model_len=1024)
    size_memory(MODEL, load, 60 * MIB)  # a server starts: it needs one sequence
    load = replace(load, whole_load=True)
    with pytest.raises(DoesNotFit, match="for 64 sequences at once, each of 1024 tokens") as short:
        size_memory(MODEL, load, 60 * MIB)
    assert short.value.kv_needed_bytes == 64 * 1024 * TOKEN
    fits = size_memory(MODEL, replace(load, max_num_seqs=60), 60 * MIB)
    assert fits.concurrent_sequences >= 60


def test_half_of_the_available_memory_is_the_most() -> None:
    request = replace(ASKED, max_num_seqs=64, max_model_len=1024)
    plan = plan_memory(MODEL, request, 64 * MIB)
    assert plan.pool_limit == "half of the available memory"
    assert plan.capacity_tokens == 32 * MIB // TOKEN // 16 * 16


def test_the_length_is_cut_to_the_pool_only_when_it_was_left_to_us() -> None:
    small = replace(ASKED, kv_cache_memory=100 * 16 * TOKEN // 10)
    plan = plan_memory(MODEL, small, 8 * GIB)
    assert plan.max_model_len == plan.capacity_tokens == 160
    with pytest.raises(StartupError) as raised:
        plan_memory(MODEL, replace(small, max_model_len=1024), 8 * GIB)
    message = str(raised.value)
    # (1024 - 160) tokens x 512 bytes
    assert "432.00 KiB too little for one sequence of 1024 tokens" in message
    assert "--max-model-len 160 or --kv-cache-memory 512KiB" in message


def test_a_length_that_was_left_to_us_is_the_longest_that_fits() -> None:
    """Rows and block tables grow with the length: shorter ones leave more for the pool."""
    model = replace(MODEL, max_positions=1 << 17)
    request = replace(ASKED, device="cuda", max_num_seqs=128)
    plan = plan_memory(model, request, 96 * MIB)
    longest = plan.max_model_len
    assert 0 < longest < model.max_positions and longest % 16 == 0
    assert plan_memory(model, replace(request, max_model_len=longest), 96 * MIB).kinds == plan.kinds
    with pytest.raises(StartupError):
        plan_memory(model, replace(request, max_model_len=longest + 16), 96 * MIB)


def test_a_length_that_was_left_to_us_is_cut_where_the_longest_ones_rows_do_not_fit() -> None:
    model = replace(MODEL, max_positions=1 << 20)
    request = replace(ASKED, device="cuda", max_num_seqs=128)
    with pytest.raises(StartupError, match="io take"):
        plan_memory(model, replace(request, max_model_len=1 << 20), 96 * MIB)
    assert plan_memory(model, request, 96 * MIB).max_model_len > 0


def test_weights_that_do_not_fit_are_named() -> None:
    deep = replace(MODEL, num_layers=1000)
    with pytest.raises(StartupError, match=r"weights take .* MiB of 64\.00 MiB .* --dtype"):
        plan_memory(deep, ASKED, 64 * MIB)


def test_a_length_beyond_the_models_is_refused() -> None:
    with pytest.raises(StartupError, match="--max-model-len 1025"):
        plan_memory(MODEL, replace(ASKED, max_model_len=1025), 8 * GIB)


def test_a_large_vocabulary_leaves_a_row_of_logits_for_every_sequence() -> None:
    """Else the sequences that are last in rank would wait for their tokens until others end."""
    for vocab_size in (2, 1000, 50_257, 151_936):
        model = replace(MODEL, vocab_size=vocab_size)
        sizes = plan_memory(model, replace(ASKED, max_num_seqs=32), 8 * GIB).config.scheduler
        assert sizes.max_logit_rows >= 32
        assert sizes.max_logprobs < vocab_size


def test_a_step_meets_no_more_rows_of_logits_than_it_has_tokens() -> None:
    asked = replace(ASKED, max_num_seqs=4, max_num_batched_tokens=8)
    plan = plan_memory(MODEL, asked, 8 * GIB)
    sizes = plan.config.scheduler
    assert sizes.max_logit_rows > sizes.logit_rows == 8
    (logits,) = (phase for phase in plan.layout.phases if phase.name == "logits")
    assert dict(logits.tensors)["logits"] == 4 * 8 * MODEL.vocab_size


def test_half_the_bytes_a_number_half_the_weights_and_half_the_pool() -> None:
    wide = plan_memory(MODEL, ASKED, 8 * GIB).kinds
    narrow = plan_memory(MODEL, replace(ASKED, dtype="bfloat16"), 8 * GIB).kinds
    assert narrow["weights"] * 2 == wide["weights"]
    assert narrow["kv_cache"] * 2 == wide["kv_cache"]


def test_weights_are_the_sum_of_every_matrix_with_the_tied_one_once() -> None:
    attention = 64 * 64 * 2 + 2 * 64 * 16  # query, output; key, value
    layer = attention + 3 * 64 * 128 + 2 * 64
    expected = 4 * (1000 * 64 + 4 * layer + 64)
    assert plan_memory(MODEL, ASKED, 8 * GIB).kinds["weights"] == expected


def test_every_kind_has_a_formula_with_the_numbers_put_in() -> None:
    plan = plan_memory(MODEL, ASKED, 8 * GIB)
    lines = formulas(plan)
    assert set(lines) == {str(kind) for kind in MemoryKind}
    assert lines["kv_cache"] == "320 blocks x 16 tokens x 4 layers x 2 (K, V) x 2 heads x 8 x 4 B"
    assert lines["weights"].startswith(f"{plan.kinds['weights'] // 4} parameters x 4 B (f32)")


def test_auto_widens_small_models_and_leaves_large_ones_as_they_are() -> None:
    large = replace(MODEL, vocab_size=2**26)  # 16 GiB of embedding in float32
    assert TORCH.parts.auto_format(MODEL, "bf16") == "f32"
    assert TORCH.parts.auto_format(large, "bf16") == "bf16"
    for dtype, format in (("float16", "f16"), ("float32", "f32")):
        assert resolve_engine(replace(ASKED, dtype=dtype), MODEL, 64).model.format == format
    with pytest.raises(ValueError, match="'auto' is no number format"):
        resolve_engine(replace(ASKED, dtype="auto"), MODEL, 64)


def test_rows_that_a_gpu_cannot_number_are_refused_before_anything_is_loaded() -> None:
    """There is memory for them: what lacks are 32-bit places."""
    model = replace(MODEL, max_positions=2**20)
    request = replace(
        ASKED,
        dtype="bfloat16",
        device="cuda",
        block_size=64,
        max_num_seqs=4096,
        max_num_batched_tokens=4096,
        max_model_len=2**20,
    )
    with pytest.raises(StartupError) as raised:
        plan_memory(model, request, 10_000 * GIB)
    message = str(raised.value)
    assert "numbers at most 2147483647" in message
    assert "--max-num-seqs" in message  # a way out
    shorter = plan_memory(model, replace(request, max_model_len=None), 10_000 * GIB)
    assert 2**18 < shorter.max_model_len < 2**20

"""FLOPs against a walk over every matrix and token; least times against hand arithmetic."""

from __future__ import annotations

import pytest

from server.memory.flops import token_flops
from server.plan_cli.roofline import decode_step, kv_traffic, prefill_step, weight_traffic
from tests.plan.plans import plan
from weights.inventory import Component, inventory
from weights.presets import find_preset
from weights.spec import ModelSpec
from weights.synthetic.tiny_specs import tiny_llama

IDLE = {Component.EMBEDDING, Component.UNEMBEDDING, Component.POSITION, Component.NORM}


def walk(spec: ModelSpec, context: int) -> int:
    """Operations of one decoded token, matrix by matrix and layer by layer."""
    total = 2 * spec.vocab_size * spec.hidden_size
    for parameter in inventory(spec):
        unused = any(
            f".experts.{expert}." in parameter.name
            for expert in range(spec.experts.chosen if spec.experts else 0, 128)
        )
        if parameter.component not in IDLE and len(parameter.shape) == 2 and not unused:
            total += 2 * parameter.num_elements
    for layer in range(spec.num_layers):
        seen = min(context, spec.window(layer) or context)
        total += 4 * spec.attention.num_query_heads * spec.attention.head_dim * seen
    return total


SPECS = {
    "tiny": tiny_llama(),
    "tied": tiny_llama(tied=True, num_kv_heads=1),
    "gemma-2-2b": find_preset("gemma-2-2b").spec,
    "mixtral-8x7b": find_preset("mixtral-8x7b").spec,
    "gpt-2-small": find_preset("gpt-2-small").spec,
}


@pytest.mark.parametrize("name", SPECS)
def test_a_decoded_token_costs_two_operations_an_element_it_meets(name: str) -> None:
    flops = token_flops(SPECS[name])
    for context in (1, 300, 5000):
        assert flops.decode(context) == walk(SPECS[name], context)


@pytest.mark.parametrize("name", ["tiny", "gemma-2-2b"])
def test_a_prompt_costs_what_its_tokens_cost_but_for_their_logits(name: str) -> None:
    spec = SPECS[name]
    flops, logits = token_flops(spec), 2 * spec.vocab_size * spec.hidden_size
    for length in (1, 100, 5000):
        tokens = sum(flops.decode(n) - logits for n in range(1, length + 1))
        assert flops.prefill(length) == tokens + logits


def test_two_operations_a_parameter_is_the_known_rule() -> None:
    """6 N D counts three times 2 N: GPT-3's forward pass takes about 2 x 175e9 a token."""
    assert token_flops(find_preset("gpt-3").spec).decode(1) == pytest.approx(350e9, rel=0.01)
    mixtral = token_flops(find_preset("mixtral-8x7b").spec)
    assert mixtral.layers + mixtral.logits == pytest.approx(12.8e9, rel=0.01)  # 12.9 B, published


def test_a_token_alone_reads_all_weights_and_waits_for_memory() -> None:
    made = plan("llama-3.1-8b", "h100")
    step = decode_step(made, 1, 1000)
    read = 2 * (8_030_261_248 - 128256 * 4096) + 1000 * (128 << 10)
    assert step.read_bytes == read
    assert step.memory_seconds == pytest.approx(read / 3.35e12)
    assert step.bound == "memory" and step.seconds == step.memory_seconds


def test_a_prompt_waits_for_products() -> None:
    step = prefill_step(plan("llama-3.1-8b", "h100"), 2048)
    flops = token_flops(find_preset("llama-3.1-8b").spec).prefill(2048)
    assert step.bound == "compute" and step.seconds == pytest.approx(flops / 989e12)


def test_ranks_divide_both_sides() -> None:
    one, two = (decode_step(plan("llama-3.1-8b", "h100", ranks=n), 8, 4096) for n in (1, 2))
    assert two.flops == one.flops
    assert one.compute_seconds == pytest.approx(2 * (two.compute_seconds or 0))
    assert two.read_bytes == pytest.approx(one.read_bytes / 2, rel=0.001)


def test_a_prompt_of_several_chunks_reads_the_weights_for_each_and_what_each_sees() -> None:
    """2500 tokens in chunks of 1000, 1000 and 500, whose ends see 1000, 2000 and 2500 tokens."""
    made = plan("llama-3.1-8b", "h100", max_num_batched_tokens="1000")
    step = prefill_step(made, 2500)
    weights = 2 * (8_030_261_248 - 128256 * 4096)
    per_token = 128 << 10
    assert dict(step.reads) == {"weights": 3 * weights, "keys and values": 5500 * per_token}
    assert step.flops == token_flops(made.model.spec).prefill(2500)
    assert step.tokens == 2500
    assert dict(prefill_step(made, 2000).reads) == {
        "weights": 2 * weights,
        "keys and values": 3000 * per_token,
    }
    assert dict(prefill_step(made, 1000).reads)["weights"] == weights
    assert dict(prefill_step(made, 1001).reads)["weights"] == 2 * weights


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_mixture_on_several_ranks_reads_its_share_of_the_experts(ranks: int) -> None:
    made = plan("mixtral-8x7b", ranks=ranks)
    expert = 32 * 3 * 4096 * 14336 * 2  # of all ranks together
    whole = weight_traffic(made, 10_000)
    assert weight_traffic(made, 1) == pytest.approx(whole - 6 * expert / ranks, rel=1e-6)
    step = prefill_step(made, 4096)
    assert step.compute_seconds == pytest.approx(step.flops / ranks / 989e12)
    alone = prefill_step(plan("mixtral-8x7b"), 4096)
    assert step.flops == alone.flops
    assert step.read_bytes == pytest.approx(alone.read_bytes / ranks, rel=0.001)


def test_a_mixture_in_chunks_reads_the_experts_that_a_chunk_chooses() -> None:
    """Chunks of 4 tokens choose 8 x (1 - (1 - 2/8)^4) of 8 experts, on average, each anew."""
    made = plan("mixtral-8x7b", max_num_batched_tokens="4", max_num_seqs="4")
    expert = 32 * 3 * 4096 * 14336 * 2
    idle = 8 * (1 - 2 / 8) ** 4
    whole = weight_traffic(made, 10_000)
    assert dict(prefill_step(made, 10).reads)["weights"] == pytest.approx(
        3 * (whole - idle * expert), rel=1e-6
    )


def test_a_mixture_reads_the_experts_that_are_chosen() -> None:
    made = plan("mixtral-8x7b")
    spec = made.model.spec
    expert = 32 * 3 * 4096 * 14336 * 2
    embedding = 2 * 32000 * 4096
    whole = made.memory.kinds["weights"] - embedding
    assert weight_traffic(made, 1) == pytest.approx(whole - 6 * expert, rel=1e-6)
    assert weight_traffic(made, 1000) == whole
    assert spec.experts is not None
    two = 8 * (1 - (1 - 2 / 8) ** 2)
    assert weight_traffic(made, 2) == pytest.approx(whole - (8 - two) * expert, rel=1e-6)


def test_a_window_bounds_what_a_token_reads() -> None:
    made = plan("mistral-7b", "h100")
    assert kv_traffic(made, 4096) == kv_traffic(made, 30_000) == 4096 * 32 * 2 * 8 * 128 * 2


def test_without_the_devices_figures_no_time_is_told() -> None:
    step = decode_step(plan("llama-3.1-8b", "80GiB"), 1, 100)
    assert step.seconds is None and step.bound is None
    step = decode_step(plan("gpt-2-xl", "h100", dtype="float32"), 1, 100)
    assert step.compute_seconds is None and step.bound is None and step.seconds is not None

"""Our decoder against transformers, on sharp random checkpoints in float32.

A checkpoint is sharp when attention looks at few tokens and greedy output varies: on others a
wrong mask or position would go unseen. Each one's sharpness is asserted here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.execution import stepping
from tests.parity import oracle
from weights.spec import Activation, ModelSpec, RopeScaling, RopeSpec
from weights.synthetic.checkpoint import tiny_gpt2, tiny_llama, write_checkpoint

PROMPT = np.random.default_rng(7).integers(3, 512, size=75).tolist()
NUM_GREEDY = 64

SPECS: dict[str, ModelSpec] = {
    "llama as many kv heads": tiny_llama(num_query_heads=4, num_kv_heads=4),
    "llama two queries a kv head": tiny_llama(num_query_heads=4, num_kv_heads=2),
    "llama four queries a kv head": tiny_llama(num_query_heads=8, num_kv_heads=2, head_dim=8),
    "llama one kv head": tiny_llama(num_query_heads=4, num_kv_heads=1),
    "llama heads wider than hidden": tiny_llama(num_query_heads=4, num_kv_heads=2, head_dim=32),
    "llama tied": tiny_llama(tied=True),
    "llama with biases": tiny_llama(attention_bias=True, mlp_bias=True),
    "llama with gelu": tiny_llama(activation=Activation.GELU_TANH),
    "gpt2 tied": tiny_gpt2(),
    "gpt2 untied": tiny_gpt2(tied=False, num_heads=2),
    "gpt2 exact gelu, narrow mlp": tiny_gpt2(activation=Activation.GELU_ERF, intermediate_size=96),
}
QUICK = ("llama two queries a kv head", "llama tied", "gpt2 tied")

ROPES: dict[str, RopeSpec] = {
    "none": RopeSpec(theta=500.0),
    "linear": RopeSpec(scaling=RopeScaling.LINEAR, factor=4.0),
    "dynamic": RopeSpec(scaling=RopeScaling.DYNAMIC, factor=2.0),
    "llama3": RopeSpec(
        scaling=RopeScaling.LLAMA3, factor=8.0, original_max_positions=32, theta=5000.0
    ),
    "yarn": RopeSpec(scaling=RopeScaling.YARN, factor=8.0, original_max_positions=32),
    "yarn untruncated": RopeSpec(
        scaling=RopeScaling.YARN,
        factor=8.0,
        original_max_positions=32,
        truncate=False,
        attention_factor=1.3,
    ),
}


def assert_logits_agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error <= 1e-4, f"max|a-b| is {error:.2e} of max|b|"


def assert_sharp(model: Any, ids: list[int], greedy: list[int]) -> None:
    assert oracle.relative_entropy(model, ids) < 0.6
    assert len(set(greedy)) >= 16


@pytest.mark.parametrize("name", SPECS)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    ours = stepping.built_from_spec(SPECS[name], tmp_path).runner
    theirs = oracle.load(tmp_path)
    assert_logits_agree(stepping.all_logits(ours, PROMPT), oracle.logits(theirs, PROMPT))
    expected = oracle.greedy(theirs, PROMPT, NUM_GREEDY)
    assert_sharp(theirs, PROMPT, expected)
    assert stepping.greedy(ours, PROMPT, NUM_GREEDY) == expected


@pytest.mark.parametrize("name", ROPES)
def test_rotary_scalings_agree_beyond_the_original_context(name: str, tmp_path: Path) -> None:
    # Linear and dynamic scaling call the original context max_positions; the others name both.
    stretched = ROPES[name].scaling in (RopeScaling.LINEAR, RopeScaling.DYNAMIC)
    spec = tiny_llama(rope=ROPES[name], max_positions=64 if stretched else 256)
    write_checkpoint(spec, tmp_path, seed=1)
    ids = np.random.default_rng(3).integers(3, 512, size=120).tolist()
    assert name == "none" or len(ids) > spec.rope.original_max_positions
    # Dynamic scaling is fixed for a server's life from max_model_len: here the prompt's length.
    ours = stepping.built(tmp_path, max_model_len=len(ids)).runner
    theirs = oracle.load(tmp_path)
    assert oracle.relative_entropy(theirs, ids) < 0.6
    assert_logits_agree(stepping.all_logits(ours, ids), oracle.logits(theirs, ids))


@pytest.mark.parametrize("name", QUICK)
def test_scored_prompts_agree(name: str, tmp_path: Path) -> None:
    ours = stepping.built_from_spec(SPECS[name], tmp_path).runner
    expected = oracle.logits(oracle.load(tmp_path), PROMPT)[:-1].log_softmax(-1)
    chosen = expected.gather(1, torch.tensor(PROMPT[1:]).unsqueeze(1))
    top = expected.topk(5, dim=1).values
    got = stepping.prompt_logprobs(ours, PROMPT, num_top=5)
    np.testing.assert_allclose(got, torch.cat((chosen, top), dim=1).numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize(("format", "bound"), [("bf16", 0.06), ("f16", 0.01)])
def test_sixteen_bit_formats_stay_near_float32(
    name: str, format: str, bound: float, tmp_path: Path
) -> None:
    """The weights are rounded to 16 bits for both; what differs is the arithmetic."""
    write_checkpoint(SPECS[name], tmp_path, seed=0, format=format)
    ours = stepping.built(tmp_path, format=format).runner
    theirs = oracle.load(tmp_path)
    expected = oracle.logits(theirs, PROMPT)
    error = (stepping.all_logits(ours, PROMPT) - expected).abs().mean() / expected.abs().max()
    assert float(error) <= bound

"""Rotary angles: the same as the transformers library's for every scaling, and rotation itself."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels import reference

HEAD_DIM, ORIGINAL = 64, 512
SCALINGS = {
    "proportional": {"factor": 1.0, "proportion": 0.25},
    "none": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "llama3_narrow": {"factor": 4.0, "low_freq_factor": 2.0, "high_freq_factor": 6.0},
    "yarn": {"factor": 4.0},
    "yarn_given": {"factor": 16.0, "attention_factor": 1.5, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn_fractional": {"factor": 4.0, "truncate": False},
}


def oracle(name: str, factors: dict, theta: float, original: int, positions: int) -> torch.Tensor:
    """cos and sin as modeling_rope_utils makes them, at a length of ``positions``."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = name.split("_")[0]
    rope = {"rope_type": "default" if kind == "none" else kind, "rope_theta": theta, **factors}
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = original
    if kind == "proportional":
        rope["partial_rotary_factor"] = rope.pop("proportion")
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=original if kind == "dynamic" else positions,
        rope_parameters=rope,
    )
    if kind == "none":
        frequencies = 1.0 / theta ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        magnitude = 1.0
    else:
        frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=positions)
    angles = torch.arange(positions).float()[:, None] * frequencies[None, :]
    return torch.cat((angles.cos() * magnitude, angles.sin() * magnitude), dim=1)


def table_of(name: str, theta: float, positions: int) -> torch.Tensor:
    return kernels.rotary_table(
        dim=HEAD_DIM,
        max_positions=positions,
        theta=theta,
        scaling=name.split("_")[0],
        original_max_positions=ORIGINAL,
        **SCALINGS[name],
    )


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("positions", [256, 4096])
def test_every_scaling_agrees_with_transformers(name, theta, positions):
    wanted = oracle(name, SCALINGS[name], theta, ORIGINAL, positions)
    got = table_of(name, theta, positions)
    assert got.shape == (positions, HEAD_DIM)
    # One rounding of a frequency moves the last angles by positions * 2**-24.
    torch.testing.assert_close(got, wanted, rtol=0, atol=positions * 2.0**-22)


def test_scalings_differ_from_none():
    """Else the comparison above could not tell them apart."""
    plain, *scaled = (table_of(name, 10000.0, 1024) for name in SCALINGS)
    for table in scaled:
        assert (table - plain).abs().max() > 0.5


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 12, 16, 20, 71, 112])
def test_slopes_are_those_of_bloom_and_of_mpt(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    slopes = kernels.alibi_slopes(heads)
    # Bloom's biases are a slope times each position; MPT's end at 0.
    bloom = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(slopes, bloom, rtol=1e-6, atol=0)
    for max_bias in (8, 6):
        mpt = -build_mpt_alibi_tensor(heads, 2, alibi_bias_max=max_bias).view(heads, 2)[:, 0]
        torch.testing.assert_close(kernels.alibi_slopes(heads, max_bias), mpt, rtol=1e-6, atol=0)
    assert slopes.dtype is torch.float32
    with pytest.raises(ValueError, match="num_heads is 0"):
        kernels.alibi_slopes(0)


def test_a_known_angle():
    table = kernels.rotary_table(dim=4, max_positions=3, theta=100.0)
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.1], [2.0, 0.2]])
    torch.testing.assert_close(table, torch.cat((angles.cos(), angles.sin()), dim=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaling": "ntk"}, "scaling is 'ntk'; it must be one of none, linear"),
        ({"dim": 7}, "dim is 7; it must be even"),
        ({"max_positions": 0}, "max_positions is 0"),
        ({"theta": 0.0}, "theta is 0.0"),
        ({"scaling": "linear", "factor": 0.0}, "factor is 0.0"),
        ({"scaling": "yarn"}, "original_max_positions is 0; yarn scaling needs"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    given = {"dim": 8, "max_positions": 4, "theta": 10000.0, **change}
    with pytest.raises(ValueError, match=message):
        kernels.rotary_table(**given)


@pytest.mark.parametrize("dim", [32, 16, 2])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["one qkv", "separate", "gaps"])
def test_rotation_and_store(dim, interleaved, dtype, layout):
    """q and k turn in place, v does not; the cache holds k and v at their slots and no more."""
    torch.manual_seed(dim)
    tokens, heads, kv_heads, head_dim, block_size = 9, 4, 2, 32, 4
    qkv = torch.randn(tokens, heads + 3 * kv_heads, head_dim).to(dtype)
    q, k, v = qkv[:, :4], qkv[:, 4:6], qkv[:, 6:8]
    if layout == "separate":
        q, k, v = q.clone(), k.clone(), v.clone()
    elif layout == "gaps":
        k, v = qkv[:, 6:8], qkv[:, 8:]
    cache = torch.full((7, 2, kv_heads, block_size, head_dim), torch.nan, dtype=dtype)
    slots = torch.randperm(7 * block_size)[:tokens]
    options = {
        "positions": torch.randint(0, 50, (tokens,)),
        "cos_sin": kernels.rotary_table(dim=dim, max_positions=50, theta=10000.0),
        "interleaved": interleaved,
    }
    wanted = [tensor.clone() for tensor in (q, k, v, cache)]
    reference.rotary_store_kv(*wanted, slots, **options)
    kernels.rotary_store_kv(q, k, v, cache, slots, **options)
    limit = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for got, want in zip((q, k, v, cache), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=limit, atol=limit, equal_nan=True)
    assert int(cache.isnan().logical_not().sum()) == 2 * tokens * kv_heads * head_dim


def test_a_store_without_rotation_leaves_q_and_k():
    cache = torch.zeros(2, 2, 1, 4, 8)
    q, k, v = torch.randn(1, 2, 8), torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    before = q.clone(), k.clone()
    kernels.rotary_store_kv(q, k, v, cache, torch.tensor([6]))
    assert torch.equal(q, before[0])
    assert torch.equal(cache[1, 0, :, 2], before[1][0])
    assert torch.equal(cache[1, 1, :, 2], v[0])
    kernels.rotary_store_kv(q[:0], k[:0], v[:0], cache, torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 2, 8)}, "k has shape"),
        ({"k": torch.zeros(1, 2, 8)}, "k has 2 heads; cache_layer has 1"),
        (
            {"v": torch.zeros(1, 1, 8, dtype=torch.float16)},
            "v is float16; it must be one of float32",
        ),
        ({"q": torch.zeros(1, 8, 2).transpose(1, 2)}, "q has strides"),
        ({"slot_mapping": torch.zeros(1, dtype=torch.int32)}, "slot_mapping is int32"),
        ({"cos_sin": torch.zeros(4, 8)}, "cos_sin is given without positions"),
        (
            {"cos_sin": torch.zeros(4, 16), "positions": torch.zeros(1, dtype=torch.int64)},
            "cos_sin turns 16 channels; it must be an even number of at most head_dim, 8",
        ),
        ({"cache_layer": torch.zeros(2, 2, 1, 8, 4).transpose(3, 4)}, "cache_layer has strides"),
    ],
)
def test_a_wrong_store_is_refused_by_name(change, message):
    given = {
        "q": torch.zeros(1, 2, 8),
        "k": torch.zeros(1, 1, 8),
        "v": torch.zeros(1, 1, 8),
        "cache_layer": torch.zeros(2, 2, 1, 4, 8),
        "slot_mapping": torch.zeros(1, dtype=torch.int64),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        kernels.rotary_store_kv(**given)


def test_block_copies_read_every_source_before_they_write():
    cache = torch.randn(3, 5, 2, 1, 4, 8)
    wanted = cache.clone()
    sources, destinations = torch.tensor([0, 1, 4]), torch.tensor([1, 0, 2], dtype=torch.int32)
    reference.copy_blocks(wanted, sources, destinations)
    swapped = cache[:, 0].clone()
    kernels.copy_blocks(cache, sources, destinations)
    assert torch.equal(cache, wanted)
    assert torch.equal(cache[:, 1], swapped)
    kernels.copy_blocks(cache, sources[:0], destinations[:0])
    assert torch.equal(cache, wanted)

"""The random bits: known answers of the generator, and its tensor form."""

from __future__ import annotations

import math

import pytest
import torch

import kernels
from kernels import reference
from kernels.cpu import philox as cpu_philox
from kernels.philox import KEY_DOMAIN, SAMPLING_DOMAIN, as_int64, philox_4x32, sampling_bits

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_known_answers_of_random123(counter, key, answer):
    assert philox_4x32(counter, key) == answer


def test_tensors_and_integers_give_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    count = 3 * cpu_philox.CHUNK + 5  # several chunks and a rest
    keys = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
    positions = torch.randint(0, 2**62, (count,), generator=generator)
    blocks = torch.randint(0, 2**17, (count,), generator=generator)
    words = cpu_philox.sampling_bits(keys, positions, blocks)
    for index in [0, 1, cpu_philox.CHUNK - 1, cpu_philox.CHUNK, count - 1]:
        key, position, block = int(keys[index]), int(positions[index]), int(blocks[index])
        wanted = [sampling_bits(key, position, 4 * block + lane) for lane in range(4)]
        assert words[index].tolist() == wanted


def test_the_layout_of_a_counter():
    """Block, domain, and the position's two halves; the lane is the token id modulo four."""
    words = philox_4x32((25, SAMPLING_DOMAIN, 7, 3), (11, 13))
    for lane in range(4):
        assert sampling_bits(11 | 13 << 32, 7 | 3 << 32, 100 + lane) == words[lane]


def test_keys_of_choices():
    words = philox_4x32((2, KEY_DOMAIN, 0, 0), (5, 9))
    assert kernels.derive_key(5 | 9 << 32, 2) == words[0] | words[1] << 32
    assert kernels.derive_key(-1, 0) == kernels.derive_key(2**64 - 1, 0)
    keys = {kernels.derive_key(seed, choice) for seed in range(50) for choice in range(50)}
    assert len(keys) == 2500
    assert all(0 <= key < 2**64 for key in keys)
    with pytest.raises(ValueError, match="choice is -1"):
        kernels.derive_key(0, -1)


def test_keys_as_signed_integers():
    for key in (0, 1, 2**63 - 1, 2**63, 2**64 - 1):
        signed = as_int64(key)
        assert int(torch.tensor([signed])[0]) & (2**64 - 1) == key


def test_gumbel_noise_is_finite_at_both_ends_and_as_documented():
    bits = torch.tensor([0, 1, 2**31, 2**32 - 2, 2**32 - 1])
    noise = cpu_philox.gumbel(bits)
    wanted = [-math.log(-math.log((b + 0.5) / 2**32)) for b in bits.tolist()]
    torch.testing.assert_close(noise, torch.tensor(wanted))
    assert float(noise[-1] - noise[0]) < 26.1
    key, position = kernels.derive_key(3, 1), 17
    words = cpu_philox.sampling_bits(
        torch.tensor([as_int64(key)]), torch.tensor([position]), torch.tensor([5])
    )
    for lane in range(4):
        got = float(cpu_philox.gumbel(words[0, lane]))
        assert got == pytest.approx(reference.gumbel(key, position, 20 + lane), rel=1e-6)

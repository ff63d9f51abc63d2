"""The assembly that widens 8 and 4 bits, which the interpreter cannot run: executed here, word by
word, for every byte there is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kernels.jit import linear_parts

Words = np.ndarray  # uint32, one a thread
BYTES = np.arange(256, dtype=np.uint8)
HALVES = {"bf16x2": torch.bfloat16, "f16x2": torch.float16}


def instructions(text: str) -> Iterator[tuple[str, list[str]]]:
    for line in re.findall(r"^\s*([^;{}]+);", text, re.MULTILINE):
        name, _, operands = line.strip().partition(" ")
        if name != ".reg":
            yield name, [operand.strip() for operand in operands.split(",")]


def run(text: str, given: Words, outputs: int) -> list[Words]:
    """The output words of inline assembly with ``outputs`` outputs and one input after them."""
    registers: dict[str, Words] = {f"${outputs}": given}

    def value(operand: str) -> Words:
        if operand in registers:
            return registers[operand]
        return np.full_like(given, int(operand, 0))

    for name, (target, *operands) in instructions(text):
        registers[target] = execute(name, [value(operand) for operand in operands])
    return [registers[f"${index}"] for index in range(outputs)]


def execute(name: str, values: list[Words]) -> Words:
    operation, _, kind = name.partition(".")
    if operation == "mov":
        return values[0]
    if operation in ("and", "or", "xor", "shr"):
        assert kind == ("u32" if operation == "shr" else "b32")
        bitwise = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
        return bitwise.get(operation, np.right_shift)(*values)
    if operation == "prmt":
        return permuted(*values)
    return in_halves(operation, HALVES[kind.removeprefix("rn.")], values)


def permuted(a: Words, b: Words, selector: Words) -> Words:
    """PTX prmt.b32: byte i of the result is byte selector[i] of b:a, a lowest."""
    pair = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
    result = np.zeros_like(pair)
    for place in range(4):
        chosen = (selector >> np.uint32(4 * place) & np.uint32(15)).astype(np.uint64)
        assert bool((chosen < 8).all())  # the sign-replicating mode is not used
        byte = pair >> chosen * np.uint64(8) & np.uint64(255)
        result |= byte << np.uint64(8 * place)
    return result.astype(np.uint32)


def floats(words: Words, dtype: torch.dtype) -> torch.Tensor:
    """[n, 2] float64: the low half of each word, then the high one."""
    return torch.from_numpy(words.view(np.int16).copy()).view(dtype).double().view(-1, 2)


def in_halves(operation: str, dtype: torch.dtype, values: list[Words]) -> Words:
    """Two 16-bit floats a word; the exact result is rounded once."""
    first, second, *rest = (floats(value, dtype) for value in values)
    if operation == "sub":
        exact = first - second
    else:
        assert operation in ("mul", "fma")
        exact = first * second + (rest[0] if rest else 0.0)
    return exact.to(dtype).view(torch.int16).numpy().view(np.uint32).reshape(-1)


BOTH = pytest.mark.parametrize("name", ["bf16", "f16"])


def widened(source: str, name: str, results: int) -> list[torch.Tensor]:
    """What the assembly from one format to another makes of every byte: tensors [256]."""
    text = getattr(linear_parts, f"{source}_{name.upper()}").value
    # Four bytes a word, the first lowest; two floats a word, likewise.
    words = run(text, BYTES.view(np.uint32), 2 * results)
    pairs = [floats(word, HALVES[f"{name}x2"]) for word in words]
    return [
        torch.stack(pairs[2 * index : 2 * index + 2], dim=1).reshape(256)
        for index in range(results)
    ]


@BOTH
def test_nibbles(name):
    low, high = widened("INT4", name, 2)
    assert torch.equal(low, torch.from_numpy((BYTES & 15).astype(np.float64)) - 8)
    assert torch.equal(high, torch.from_numpy((BYTES >> 4).astype(np.float64)) - 8)


@BOTH
def test_whole_numbers(name):
    (numbers,) = widened("INT8", name, 1)
    assert torch.equal(numbers, torch.from_numpy(BYTES.view(np.int8).astype(np.float64)))


@BOTH
def test_floats_of_8_bits(name):
    """All but the two NaNs, subnormal ones among them."""
    (numbers,) = widened("FP8", name, 1)
    wanted = torch.from_numpy(BYTES.copy()).view(torch.float8_e4m3fn).double()
    known = ~wanted.isnan()
    assert int(known.sum()) == 254
    assert torch.equal(numbers[known], wanted[known])

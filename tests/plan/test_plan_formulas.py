"""The arithmetic that --explain writes out is done again, and gives the figures beside it."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server.memory.layout import ELEMENT_BYTES
from tests.plan.plans import told
from weights.presets import read_presets
from weights.tensor_parallel import check_ranks

SOME = (
    *("gpt-2-xl", "llama-3.1-8b", "gemma-3-4b", "mixtral-8x7b", "palm-540b"),
    "deepseek-v2-lite",
)
Way = tuple[str, str | None, int, dict[str, str]]
WAYS: tuple[Way, ...] = (
    ("h200", None, 1, {}),
    ("24GiB", "fp8", 1, {"dtype": "float32"}),
    ("h100", None, 2, {"max-num-seqs": "7"}),
    ("l4", "int8", 4, {"quantization": "int4", "block-size": "16"}),
    ("a100-80", None, 1, {"batch-invariant": "on"}),
    ("cpu", None, 1, {}),
    ("cpu", None, 1, {"backend": "native"}),
    ("cpu", None, 1, {"backend": "native", "quantization": "int8"}),
)

# Numbers, + - * / and the functions that formulas name, and nothing else.
_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"ceil": math.ceil, "min": min}


def calculate(text: str) -> int:
    """The whole number that ``text`` comes to. Raises ValueError for anything but a sum."""
    value = _value(ast.parse(text, mode="eval").body)
    if value != int(value):
        raise ValueError(f"{text} is {value}, no whole number")
    return int(value)


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.BinOp(left, operation, right):
            return _OPERATIONS[type(operation)](_value(left), _value(right))
        case ast.Call(ast.Name(name), arguments, []):
            return _FUNCTIONS[name](*map(_value, arguments))
    raise ValueError(f"{ast.unparse(node)} is no part of a sum")


def added(text: str) -> int:
    """``a 1 + b 2 B, at ...``: the sum of the parts."""
    parts = re.split(r" B\b", text, maxsplit=1)[0].split(" + ")
    return sum(int(part.rsplit(" ", 1)[1]) for part in parts)


def multiplied(text: str) -> int:
    """``2 blocks x 3 tokens x 4 B``, with words that are no numbers left out, and what is told
    behind a semicolon."""
    text = text.partition(";")[0]
    return calculate(re.sub(r"[^0-9+*()]", "", text.replace("(K, V)", "").replace(" x ", "*")))


def listed(text: str) -> int:
    """``name [2, 3] i32 + ...``: elements times their bytes."""
    shapes = re.findall(r"\[([0-9, ]*)\] (\w+)", text)
    return sum(math.prod(map(int, s.split(", "))) * ELEMENT_BYTES[f] for s, f in shapes)


def weights(text: str) -> int:
    plain = re.search(r"(\d+) (?:parameters|others) x (\d) B \(\w+\)", text)
    more = re.search(r"their scales \((\d+) B\)|(\d+) B that pad", text)
    assert plain is not None
    return int(plain[1]) * int(plain[2]) + (int(more[1] or more[2]) if more else 0)


def hold_split(facts: dict[str, Any]) -> None:
    lines, split = facts["formulas"], facts["split"]
    assert weights(lines["weights"]) == split["weights"]
    assert multiplied(lines["kv_cache"]) == split["kv_cache"]
    assert listed(lines["io"]) == split["io"]
    for kind in ("activations", "graphs", "workspace"):
        none = lines[kind].startswith("none")
        assert (0 if none else added(lines[kind].split(": ", 1)[1])) == split[kind]


def hold_census(facts: dict[str, Any]) -> None:
    for name, line in facts["census"].items():
        written = re.sub(r"\(\d+ heads each\)", "", facts["formulas"][f"census.{name}"])
        assert multiplied(written) == line["parameters"]


def hold_sequences(facts: dict[str, Any]) -> None:
    written = facts["formulas"]["sequences"]
    found = re.search(r"takes \((.*?)\) x (\d+) tokens x (\d+) B; ", written)
    pool = re.search(r"(\d+) B hold", written)
    chunk = re.search(r"while a step computes its prompt, \((.*)\);", written)
    assert found is not None and pool is not None
    token = int(found[2]) * int(found[3])
    for line in facts["capacity"]["sequences"]:
        each, computed = (
            calculate(
                re.sub(r" (layers|groups) x ", " * ", blocks).replace("length", str(line["length"]))
            )
            * token
            for blocks in (found[1], found[1] if chunk is None else chunk[1])
        )
        held = max(0, int(pool[1]) - (computed - each)) // each
        assert (each, held) == (line["bytes_each"], line["sequences"])


def hold_work(facts: dict[str, Any]) -> None:
    lines, flops = facts["formulas"], facts["flops"]
    for name, key in (("layers", "matrices"), ("logits", "logits"), ("attention", "attention")):
        written, result = lines[f"FLOPs.{name}"].rsplit(" = ", 1)
        assert multiplied(written) == int(result) == flops[f"{key}_per_token"]
    assert lines["FLOPs.decode"].endswith(f" = {flops['decode_per_token']}")
    written, result = lines["FLOPs.prefill"].removesuffix(", rounded down").rsplit(" = ", 1)
    products, length = written.rsplit(" / ", 1)
    assert multiplied(products) // int(length) == int(result) == flops["prefill_per_token"]
    for number, step in enumerate(facts["roofline"], 1):
        line = lines.get(f"least time {number}")
        assert (line is None) == (step["memory_seconds"] is None)
        if line is not None:
            reads = line.split(": reads ", 1)[1].split(" = ")[0]
            assert added(reads) == step["read_bytes"]
            assert line.endswith(f"= {step['read_bytes']} B; {step['flops']} FLOPs")


def divides(model: str, ranks: int) -> bool:
    try:
        check_ranks(read_presets()[model].spec, ranks)
    except ValueError:
        return False  # gpt-2-xl has 25 heads, the smallest Qwen 14
    return True


def asked() -> Iterator[Any]:
    """Some presets in all ways; each other in two, in turn, and in all of them in the sweep."""
    for number, name in enumerate(read_presets()):
        if name in SOME:
            yield pytest.param(name, WAYS, id=name)
            continue
        two = (WAYS[number % len(WAYS)], WAYS[(number + 3) % len(WAYS)])
        yield pytest.param(name, two, id=f"{name}-in-two-ways", marks=pytest.mark.slow)
        yield pytest.param(name, WAYS, id=name, marks=pytest.mark.sweep)


@pytest.mark.parametrize(("model", "ways"), list(asked()))
def test_what_is_written_out_gives_what_is_told(model: str, ways: tuple[Way, ...]) -> None:
    possible = [way for way in ways if divides(model, way[2])]
    assert possible
    for device, kv, ranks, flags in possible:
        facts = told(model, device, kv, ranks, explain=True, **flags)
        assert all(len(name) < 20 for name in facts["formulas"])  # else two words run together
        hold_split(facts)
        hold_census(facts)
        hold_sequences(facts)
        hold_work(facts)

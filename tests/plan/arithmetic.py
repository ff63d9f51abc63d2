"""Does written sums again: numbers, + - * / and the functions that formulas name. Nothing else."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

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

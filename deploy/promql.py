"""What a query means: of what its result is an amount, by which labels, and if it is one at all.

A query is read into its syntax tree, and the tree is evaluated over meanings instead of samples:

    quire_requests_total{...}               a counter of requests, by route, outcome, instance ...
    rate(                          [5m])    requests per second, by the same
    sum by (outcome) (                  )   requests per second, by outcome

What cannot mean anything is refused on the way: a name or label that does not exist, a counter
that is shown or added up before its rate, a rate of a gauge, a quantile of a non-histogram,
bytes added to tokens, two sides that have no label set in common.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import promql_parser as syntax

from deploy.catalogue import NUMBER, Catalogue, Form, Quantity
from server.metrics.spec import Unit

_COUNTS = frozenset({Unit.REQUESTS, Unit.STEPS, Unit.EVENTS, Unit.SEQUENCES, Unit.BLOCKS})
_RATES = frozenset({"rate", "irate"})
_OF_GAUGES = frozenset(
    {"avg_over_time", "min_over_time", "max_over_time", "last_over_time", "delta", "deriv"}
)
_SAME = frozenset({"abs", "ceil", "clamp_max", "clamp_min", "floor", "round", "sort", "sort_desc"})
_COUNTING = frozenset({"count_over_time", "changes", "resets"})
_NO_SUM = frozenset({Unit.RATIO, Unit.SECONDS})
_COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">="})
_SETS = frozenset({"and", "or", "unless"})


class QueryError(ValueError):
    """The query cannot be meant; says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """``labels`` None: a number that has no labels and goes with everything."""

    form: Form
    quantity: Quantity
    labels: frozenset[str] | None


_PLAIN_NUMBER = Meaning(Form.VALUE, NUMBER, None)


def meaning(query: str, catalogue: Catalogue) -> Meaning:
    """
    Raises:
        QueryError: the query is not PromQL, or cannot be meant; says why.
    """
    try:
        tree = syntax.parse(query)
    except ValueError as error:
        raise QueryError(f"no PromQL: {error}") from error
    result = _Evaluation(catalogue).of(tree)
    if result.form is not Form.VALUE:
        raise QueryError(f"a {result.form} is shown: take rate() or increase() of it first")
    return result


def selectors(query: str) -> list[tuple[str, Mapping[str, str]]]:
    """The names that a query selects, each with its matchers as ``{label: operator + value}``."""
    found: list[tuple[str, Mapping[str, str]]] = []

    def visit(node: syntax.Expr) -> bool:
        if isinstance(node, syntax.VectorSelector):
            matchers = {m.name: f"{_OPERATORS[str(m.op)]}{m.value}" for m in node.matchers.matchers}
            found.append((node.name or "", matchers))
        return True

    syntax.walk(syntax.parse(query), visit)
    return found


_OPERATORS = {
    str(syntax.MatchOp.Equal): "=",
    str(syntax.MatchOp.NotEqual): "!=",
    str(syntax.MatchOp.Re): "=~",
    str(syntax.MatchOp.NotRe): "!~",
}


class _Evaluation:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def of(self, node: syntax.Expr) -> Meaning:
        match node:
            case syntax.NumberLiteral():
                return _PLAIN_NUMBER
            case syntax.ParenExpr() | syntax.UnaryExpr() | syntax.SubqueryExpr():
                return self.of(node.expr)
            case syntax.VectorSelector():
                return self._selector(node)
            case syntax.MatrixSelector():
                return self._selector(node.vector_selector)
            case syntax.AggregateExpr():
                return self._aggregate(node)
            case syntax.Call():
                return self._call(node)
            case syntax.BinaryExpr():
                return self._binary(node)
        raise QueryError(f"{type(node).__name__} has no meaning here: {node}")

    def _selector(self, node: syntax.VectorSelector) -> Meaning:
        name = node.name or ""
        if name not in self._catalogue:
            raise QueryError(f"there is no metric {name!r}")
        series = self._catalogue[name]
        for matcher in node.matchers.matchers:
            if matcher.name not in series.labels:
                raise QueryError(f"{name} has no label {matcher.name!r}")
            _check_value(name, matcher, series.labels[matcher.name])
        return Meaning(series.form, series.quantity, frozenset(series.labels))

    def _aggregate(self, node: syntax.AggregateExpr) -> Meaning:
        inner, operation = self.of(node.expr), str(node.op)
        if inner.form in (Form.COUNTER, Form.BUCKETS):
            raise QueryError(
                f"{operation} over a {inner.form}: take its rate() first, then {operation}"
            )
        labels = _grouped(node.modifier, inner)
        if inner.form is Form.BUCKET_RATES:
            if operation != "sum" or "le" not in labels:
                raise QueryError("buckets are added up by le: sum by (le, ...)")
            return replace(inner, labels=labels)
        quantity = inner.quantity
        match operation:
            case "sum" if not quantity.per_second and quantity.unit in _NO_SUM:
                raise QueryError(f"a sum of {quantity} says nothing: take max, min or avg")
            case "sum" if quantity.unit is Unit.FLAG:
                quantity = NUMBER
            case "count":
                quantity = NUMBER
            case "sum" | "max" | "min" | "avg" | "topk" | "bottomk":
                pass
            case _:
                raise QueryError(f"{operation} has no meaning here")
        if operation in ("topk", "bottomk"):
            labels = inner.labels or frozenset()
        return replace(inner, quantity=quantity, labels=labels)

    def _call(self, node: syntax.Call) -> Meaning:
        name: str = node.func.name
        if name == "vector":
            return Meaning(Form.VALUE, NUMBER, frozenset())
        inner = self.of(node.args[1 if name == "histogram_quantile" else 0])
        if name == "histogram_quantile":
            return _quantile(inner)
        if name in _RATES or name == "increase":
            return _rate(name, inner)
        if name == "absent":
            return replace(inner, form=Form.VALUE, quantity=NUMBER)
        if name in _COUNTING:
            return replace(inner, form=Form.VALUE, quantity=NUMBER)
        if name in _OF_GAUGES or name in _SAME:
            if inner.form is not Form.VALUE:
                raise QueryError(f"{name}() of a {inner.form}: take rate() or increase()")
            per_second = inner.quantity.per_second or name == "deriv"
            return replace(inner, quantity=replace(inner.quantity, per_second=per_second))
        raise QueryError(f"the function {name}() has no meaning here")

    def _binary(self, node: syntax.BinaryExpr) -> Meaning:
        left, right, operation = self.of(node.lhs), self.of(node.rhs), str(node.op)
        for side in (left, right):
            if side.form is not Form.VALUE:
                raise QueryError(f"{operation} of a {side.form}: take rate() or increase() first")
        labels = _matched(node, left, right)
        if operation in _COMPARISONS or operation in ("and", "unless"):
            if operation in _COMPARISONS:
                _same(operation, left, right)
            return replace(left, labels=labels)
        return Meaning(Form.VALUE, _ARITHMETIC[operation](operation, left, right), labels)


def _check_value(name: str, matcher: syntax.Matcher, allowed: tuple[str, ...] | None) -> None:
    """Every alternative of a matcher can be met. A dashboard's variable stands for any value."""
    if allowed is None or matcher.value.startswith("$"):
        return
    is_regex = matcher.op in (syntax.MatchOp.Re, syntax.MatchOp.NotRe)
    for wanted in matcher.value.split("|") if is_regex else [matcher.value]:
        met = (re.fullmatch(wanted, value) if is_regex else wanted == value for value in allowed)
        if not any(met):
            raise QueryError(
                f"{name}: {matcher.name} is never {wanted!r}; it is one of {', '.join(allowed)}"
            )


def _grouped(modifier: syntax.AggModifier | None, inner: Meaning) -> frozenset[str]:
    before = inner.labels or frozenset()
    if not modifier:
        return frozenset()
    for label in modifier.labels:
        if label not in before:
            raise QueryError(f"grouped by {label!r}, which is none of {', '.join(sorted(before))}")
    kept = frozenset(modifier.labels)
    return kept if modifier.type == syntax.AggModifierType.By else before - kept


def _rate(name: str, inner: Meaning) -> Meaning:
    if inner.form not in (Form.COUNTER, Form.BUCKETS):
        raise QueryError(f"{name}() of a {inner.form}: it is for counters")
    form = Form.BUCKET_RATES if inner.form is Form.BUCKETS else Form.VALUE
    per_second = name in _RATES and form is Form.VALUE
    return replace(inner, form=form, quantity=replace(inner.quantity, per_second=per_second))


def _quantile(inner: Meaning) -> Meaning:
    if inner.form is not Form.BUCKET_RATES or inner.labels is None or "le" not in inner.labels:
        raise QueryError("histogram_quantile() is of sum by (le, ...) (rate(..._bucket[...]))")
    return replace(inner, form=Form.VALUE, labels=inner.labels - {"le"})


def _matched(node: syntax.BinaryExpr, left: Meaning, right: Meaning) -> frozenset[str] | None:
    """The result's labels. Raises QueryError where no series of one side meets one of the other."""
    if left.labels is None or right.labels is None:
        return right.labels if left.labels is None else left.labels
    operation, modifier = str(node.op), node.modifier
    if operation == "or":
        return left.labels
    matching = modifier.matching if modifier else None
    if matching is None:
        if left.labels != right.labels:
            raise QueryError(
                f"{operation} never matches: by {', '.join(sorted(left.labels)) or 'nothing'} on "
                f"the left, by {', '.join(sorted(right.labels)) or 'nothing'} on the right"
            )
        return left.labels
    included = matching.type == syntax.LabelModifierType.Include
    for label in matching.labels if included else ():
        if label not in left.labels or label not in right.labels:
            raise QueryError(f"{operation} on {label!r}, which one side does not have")
    if modifier and modifier.card == syntax.VectorMatchCardinality.ManyToOne:
        return left.labels | frozenset(modifier.group_labels or ())
    if operation in _SETS or operation in _COMPARISONS:
        return left.labels
    kept = frozenset(matching.labels)
    return kept if included else left.labels - kept


def _same(operation: str, left: Meaning, right: Meaning) -> Quantity:
    a, b = left.quantity, right.quantity
    if a == b or b == NUMBER:
        return a
    if a == NUMBER:
        return b
    raise QueryError(f"{a} {operation} {b}")


def _divided(operation: str, left: Meaning, right: Meaning) -> Quantity:
    """A share of the same, or so much for each of what is counted."""
    a, b = left.quantity, right.quantity
    if b == NUMBER:
        return a
    if a == b:
        return Quantity(Unit.RATIO)
    if a.per_second == b.per_second and b.unit in _COUNTS:
        return Quantity(a.unit)
    if b == Quantity(Unit.SECONDS) and not a.per_second:
        return Quantity(a.unit, per_second=True)
    raise QueryError(f"{a} / {b} is not a quantity")


def _multiplied(operation: str, left: Meaning, right: Meaning) -> Quantity:
    a, b = left.quantity, right.quantity
    for one, other in ((a, b), (b, a)):
        if other == NUMBER or other.unit in (Unit.FLAG, Unit.RATIO):
            return one
    raise QueryError(f"{a} * {b} is not a quantity")


_ARITHMETIC: Mapping[str, Callable[[str, Meaning, Meaning], Quantity]] = {
    "+": _same,
    "-": _same,
    "or": _same,
    "/": _divided,
    "*": _multiplied,
}

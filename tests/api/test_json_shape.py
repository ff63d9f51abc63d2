"""The size of a JSON body is told before it is parsed, by C-speed steps over slices."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api import json_shape
from server.api.json_shape import JsonLimits, JsonShape, measure
from server.errors import QuireError

LIMITS = JsonLimits(depth=4, containers=10, values=20)
WIDE = JsonLimits(depth=10_000, containers=10**7, values=10**7)


def counted(value: Any) -> tuple[int, int]:
    """(lists and objects, all values) of a parsed text."""
    if isinstance(value, dict | list):
        parts = [counted(item) for item in (value.values() if isinstance(value, dict) else value)]
        return 1 + sum(part[0] for part in parts), 1 + sum(part[1] for part in parts)
    return 0, 1


def depth_of(value: Any) -> int:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth_of, items), default=0)
    return 0


TEXTS = st.text(alphabet='"\\[]{},:aé\n ', max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=30,
)


@given(VALUES, st.booleans(), st.integers(1, 40))
def test_what_is_in_strings_counts_for_nothing_wherever_a_slice_is_cut(
    value: Any, ascii_only: bool, cut: int
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_shape, "SLICE_BYTES", 2 * cut)
        patch.setattr(json_shape, "SPLIT_BYTES", cut)
        shape = measure(body, WIDE)
    containers, values = counted(value)
    assert shape.containers == containers
    # Of a container without a value, one is counted all the same.
    assert values <= shape.values <= values + containers + 1


@given(VALUES, st.integers(0, 6))
def test_depth_is_told_exactly(value: Any, most: int) -> None:
    body = json.dumps(value).encode()
    limits = JsonLimits(most, WIDE.containers, WIDE.values)
    if depth_of(value) <= most:
        measure(body, limits)
    else:
        with pytest.raises(QuireError, match=f"deeper than {most} levels"):
            measure(body, limits)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"[" + b"[]," * 10 + b"1]", "more than 10 JSON lists and objects"),
        (b"[" + b"1," * 20 + b"1]", "more than 20 JSON values"),
        (b"[" + b'"",' * 20 + b"1]", "more than 20 JSON values"),
        (b'"' * 1000, "more than 20 JSON values"),
        (b"[" * 9, "deeper than 4 levels"),
        (b"[{[{[", "deeper than 4 levels"),
        (b"[[[[[]]]]]", "deeper than 4 levels"),
    ],
    ids=repr,
)
def test_too_much_is_refused(body: bytes, match: str) -> None:
    with pytest.raises(QuireError, match=match):
        measure(body, LIMITS)


@pytest.mark.parametrize(
    "body",
    [b"", b"]]]]", b'"[[[[[[[[[[[', b'"\\"[[[[[[[[[[[[', b'{"a": "' + b"\\\\" * 99 + b'"}', b"\\"],
    ids=repr,
)
def test_what_is_no_json_is_left_to_the_parser(body: bytes) -> None:
    assert measure(body, LIMITS).containers <= 1


def test_an_odd_backslash_at_a_cut_goes_with_what_it_escapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_shape, "SLICE_BYTES", 4)
    for lead in range(8):
        body = b'["' + b"a" * lead + b'\\\\\\",[[[[["]'
        assert measure(body, LIMITS) == JsonShape(1, 2)

"""The held-out files are whole, follow the rule, and stay out of the training text."""

from __future__ import annotations

import hashlib

import pytest

from weights.demo.corpus import (
    SHARED_RUNS,
    Document,
    Split,
    choose_units,
    is_test_of,
    line_runs,
    read_heldout,
    read_library,
    split_library,
    units_in_order,
)

HELDOUT_SHA256 = "a92467a36aa14d3f055f43da68d8004bc36085015c0f97c6b78eb4c0250a718c"


@pytest.fixture(scope="module")
def split() -> Split:
    return split_library(read_library(), read_heldout())


def test_heldout_size_and_digest() -> None:
    files = [document.text.encode() for document in read_heldout()]
    assert 200_000 < sum(map(len, files)) < 350_000
    # The published figure is for exactly these bytes.
    assert hashlib.sha256(b"".join(files)).hexdigest() == HELDOUT_SHA256


def test_heldout_units_are_the_first_by_the_rule(split: Split) -> None:
    ordered = [unit for unit, _ in units_in_order(split.heldout)]
    held, _ = choose_units((*split.heldout, *split.dev, *split.train))
    assert held >= set(ordered)


def test_no_training_file_is_held_out_or_nearly_so(split: Split) -> None:
    apart = frozenset(document.unit for document in (*split.heldout, *split.dev))
    known = set().union(*(line_runs(d.text) for d in (*split.heldout, *split.dev)))
    for document in split.train:
        assert document.unit not in apart
        assert not is_test_of(document, apart)
        assert len(line_runs(document.text) & known) <= SHARED_RUNS


def test_training_text_is_large_and_partly_tests(split: Split) -> None:
    assert sum(document.size for document in split.train) > 10_000_000
    assert not any("site-packages" in document.path for document in split.train)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("test/test_json/test_dump.py", True),
        ("test/test_json.py", True),
        ("test/test_json_extra.py", True),
        ("test/test_jsonish.py", False),
        ("json/tool.py", False),
    ],
)
def test_tests_of_a_unit_are_recognised(path: str, expected: bool) -> None:
    assert is_test_of(Document(path, ""), frozenset({"json"})) is expected


def test_a_copied_file_is_dropped() -> None:
    lines = "".join(f"value_{i} = {i}\n" for i in range(100))
    documents = (Document("held.py", lines), Document("copy.py", "import os\n" + lines))
    assert split_library(documents, documents[:1]).train == ()

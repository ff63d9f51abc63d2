"""Native kernels: an answer is the same to the bit whatever shares its batch, its chunks and its
cache, in 16 bits too; and in float32 it is the exact one up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.equivalence import checks, rounding
from tests.equivalence.checks import Setting
from tests.native_kernels import needs_native

pytestmark = needs_native

FORMATS = ("bf16", "f32", "f16")  # of one kind after the other


@pytest.fixture(scope="module", params=checks.SPECS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checks.write(kind, tmp_path_factory.mktemp("kind"))


@pytest.fixture(scope="module")
def setting(kind: str, folder: Path) -> Setting:
    format = FORMATS[list(checks.SPECS).index(kind) % len(FORMATS)]
    return Setting(folder, known={}, backend="native", format=format)


IN_MAKE_TEST = (
    "batched equals alone",
    "chunked equals whole",
    "cached equals uncached",
    "preempted equals not",
)


@pytest.mark.parametrize("name", IN_MAKE_TEST)
def test_answers_are_the_same_bits(
    name: str, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "APART", 0.0)
    checks.CHECKS[name](setting)


@pytest.mark.slow
def test_plain_answers_are_the_exact_ones_up_to_rounding(folder: Path) -> None:
    checks.near_the_exact_answer(Setting(folder, known={}, backend="native"))


@pytest.mark.slow
def test_answers_are_the_same_bits_in_other_blocks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "APART", 0.0)
    setting = Setting(folder, 64, known={}, backend="native", format="bf16")
    for check in checks.CHECKS.values():
        check(setting)

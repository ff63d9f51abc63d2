"""Native kernels: an answer is the same to the bit whatever shares its batch, its chunks and its
cache, in 16 and 8 bits too; and in float32 it is the exact one up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.equivalence import checks, rounding
from tests.equivalence.checks import Setting
from tests.native_kernels import needs_native

pytestmark = needs_native

# Checkpoints by kind, the format of their weights, that of matrices where they are quantised, and
# of the KV cache where it is another.
SETTINGS = (
    ("llama", "bf16", None, None),
    ("gpt2", "f32", None, None),
    ("bloom", "f16", None, None),
    ("llama", "bf16", "int8", None),
    ("gpt2", "f32", None, "int8"),
    ("llama", "bf16", "int8", "f16"),
)


@pytest.fixture(scope="module", params=checks.SPECS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checks.write(str(request.param), tmp_path_factory.mktemp("kind"))


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    kind, format, quantization, kv_format = request.param
    folder = checks.write(kind, tmp_path_factory.mktemp("kind"))
    return Setting(folder, 16, {}, "native", format, quantization, kv_format)


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
    for quantization, kv_format in ((None, None), ("int8", None), (None, "int8")):
        setting = Setting(folder, 64, {}, "native", "bf16", quantization, kv_format)
        for check in checks.CHECKS.values():
            check(setting)

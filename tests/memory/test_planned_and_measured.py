"""What was planned is what real engines take, component by component, idle and under load.

Every family and form that is served, in every format, at three sets of limits. Each engine is a
process of its own (engine_fleet), whose resident set is read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.memory.kinds import MemoryKind
from tests.memory.measured_models import DTYPES, LIMITS, MODELS
from tests.native_kernels import needs_native
from weights.synthetic.checkpoint import write_checkpoint

MIB = 2**20
ROOT = Path(__file__).parents[2]
SHARE = 0.02
FEW = ("wide mlp", "multi-query", "gpt2, relu, untied")  # one of each format and set of limits
SWEEP = pytest.mark.sweep
Measured = Mapping[str, Any]


class Fleet:
    """Engines of checkpoints, one after the other."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def measure(self, name: str, dtype: str, limits: str, **more: str) -> Measured:
        """Of a model of MODELS; ``more`` are options by their fields' names."""
        folder = self._folder / name.replace(" ", "-").replace(",", "")
        if not folder.exists():
            spec = MODELS[name]
            write_checkpoint(
                spec, folder, seed=list(MODELS).index(name), format="bf16", sharp=False
            )
        case = {"model-dir": str(folder), "dtype": dtype, **LIMITS[limits]}
        case |= {name.replace("_", "-"): value for name, value in more.items()}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the fleet ended; its error is above"
        measured: Measured = json.loads(line)
        return measured


@contextmanager
def sailing(folder: Path) -> Iterator[Fleet]:
    command = [sys.executable, "-m", "tests.memory.engine_fleet"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        yield Fleet(process, folder)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with sailing(tmp_path_factory.mktemp("fleet")) as one:
        yield one


def far_apart(planned: Mapping[str, int], measured: Mapping[str, int]) -> list[str]:
    """Parts that are further apart than 2 % and 8 MiB, with both figures."""
    return [
        f"{name}: planned {planned.get(name, 0)}, measured {measured.get(name, 0)}"
        for name in planned.keys() | measured.keys()
        if abs(planned.get(name, 0) - measured.get(name, 0))
        > max(8 * MIB, SHARE * planned.get(name, 0))
    ]


def assert_as_planned(found: Measured) -> None:
    plan = found["plan"]
    assert far_apart(found["planned_weights"], found["weights"]) == []
    for moment in ("idle", "load", "after"):
        reading = found[moment]
        kinds = {kind: reading[kind] for kind in plan} | {
            "activations": reading["activations.peak"]
        }
        assert far_apart(plan, kinds) == [], moment
        assert kinds["activations"] <= plan["activations"], "the peak of tensors is within the plan"
        for exact in ("weights", "kv_cache", "io", "workspace"):
            assert kinds[exact] == plan[exact], f"{exact} is made from the very list"
        assert sum(reading[kind] for kind in MemoryKind) == reading["total"]
        allowed = max(8 * MIB, SHARE * reading["resident"])
        assert abs(reading["unaccounted"]) <= allowed, (moment, reading)
    assert far_apart({"activations": plan["activations"]}, {"activations": found["step"]}) == []


@pytest.mark.parametrize("index", range(len(FEW)), ids=FEW)
def test_an_engine_takes_what_was_planned(index: int, fleet: Fleet) -> None:
    dtype, limits = DTYPES[index % 3], list(LIMITS)[(index + 1) % 3]
    assert_as_planned(fleet.measure(FEW[index], dtype, limits))


def test_attention_of_wide_heads_takes_what_was_planned(fleet: Fleet) -> None:
    """Its queries are three times the hidden state: what attention holds decides the step."""
    assert_as_planned(fleet.measure("wide heads", "float32", "middle"))


@needs_native
def test_a_cache_in_int8_takes_what_was_planned(fleet: Fleet) -> None:
    """Its numbers and their scales."""
    found = fleet.measure("multi-head", "bfloat16", "few", kv_cache_dtype="int8")
    assert_as_planned(found)
    wide = fleet.measure("multi-head", "bfloat16", "few")
    assert found["plan"]["kv_cache"] * 128 == wide["plan"]["kv_cache"] * (64 + 4)


@pytest.mark.parametrize(
    "turn",
    [pytest.param(0, marks=pytest.mark.slow), *(pytest.param(n, marks=SWEEP) for n in (1, 2))],
)
@pytest.mark.parametrize("index", range(len(MODELS)), ids=list(MODELS))
def test_every_form_in_every_format_takes_what_was_planned(
    index: int, turn: int, fleet: Fleet
) -> None:
    """Each form meets every format and every set of limits; each turn meets all nine pairs."""
    dtype = DTYPES[(index + turn) % len(DTYPES)]
    limits = list(LIMITS)[(index // len(DTYPES) + turn) % len(LIMITS)]
    assert_as_planned(fleet.measure(list(MODELS)[index], dtype, limits))


def test_the_forms_are_large_enough_to_tell() -> None:
    """8 MiB must not hide everything: several steps and some weights are far above it."""
    from server.memory.planner.planner import EngineArgs, plan_memory

    large_steps, large_weights = [], []
    for name, spec in MODELS.items():
        request = EngineArgs(
            device="cpu",
            dtype="float32",
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            max_model_len=512,
            kv_cache_memory=200 * MIB,
        )
        kinds = plan_memory(spec, request, 16 << 30).kinds
        large_steps += [name] if kinds["activations"] > 64 * MIB else []
        large_weights += [name] if kinds["weights"] > 400 * MIB else []
    assert len(large_steps) >= 3
    assert large_weights

"""What launchers launch is what the compile gate compiles, and varying integers compile nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("triton", reason="no Triton for this machine")

from tests.kernels.own_process import run_python

ARCHS = ("80", "90")

# A model's sizes that a case stands for whatever they are.
ANY = {("build_decode_work", "NUM_KV_HEADS")}

WIDTH = "a model's width: only known to be a multiple of 16 does it let rows be read in wide loads"
WEIGHT = "a weight's shape, for the same reason"
VOCABULARY = "the model's vocabulary, for the same reason"
MAY_BE_SPECIALISED = {
    **dict.fromkeys(("x_stride", "residual_stride", "q_stride", "k_stride", "v_stride"), WIDTH),
    **{f"{name}_token_stride": WIDTH for name in ("q", "k", "v", "out")},
    **{f"{name}_head_stride": WIDTH for name in ("q", "k", "v")},
    **dict.fromkeys(("in_features", "out_features"), WEIGHT),
    **dict.fromkeys(("vocab", "logits_stride", "counts_stride"), VOCABULARY),
    **dict.fromkeys(("prompt_stride", "bitmask_stride"), VOCABULARY),
}


@dataclass(frozen=True, slots=True)
class Form:
    kernel: str
    facts: tuple[tuple[str, str], ...]

    def differs(self, other: Form) -> list[str]:
        known = dict(other.facts)
        return [
            f"{name} {known.get(name)} {value}"
            for name, value in self.facts
            if known.get(name) != value
        ]


def form(told: dict[str, Any]) -> Form:
    kernel = told["kernel"]
    facts = dict(map(tuple, told["arguments"]))
    facts |= {name: "=any" for name in facts if (kernel, name) in ANY}
    facts |= {name: str(told[name]) for name in ("num_warps", "num_stages")}
    return Form(kernel, tuple(sorted(facts.items())))


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = run_python("-m", "tests.kernels.launch_forms", *ARCHS)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_launch_is_a_case_and_every_case_is_launched(told: dict[str, Any], arch: str) -> None:
    launched = set(map(form, told[arch]["launched"]))
    cases = {name: form(case) for name, case in told[arch]["cases"].items()}
    wrong = []
    for launch in launched - set(cases.values()):
        alike = [name for name, case in cases.items() if case.kernel == launch.kernel]
        nearest = min(alike, key=lambda name: len(launch.differs(cases[name])))
        found = "; ".join(launch.differs(cases[nearest]))
        wrong.append(f"{launch.kernel} is launched otherwise than {nearest} compiles it: {found}")
    wrong += [f"{name} is never launched" for name, case in cases.items() if case not in launched]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_kernel_is_compiled_again_because_an_integer_varies(told: dict[str, Any]) -> None:
    specialised = {
        (kernel, name) for kernel, names in told["90"]["specialised"].items() for name in names
    }
    names = {name for _, name in specialised}
    assert names <= set(MAY_BE_SPECIALISED), sorted(specialised)
    assert names == set(MAY_BE_SPECIALISED), "what is not specialised needs no reason here"

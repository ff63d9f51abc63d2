"""The runner with the kernels of a GPU: they fit together, and answer as a CPU does.

On a GPU as it runs there; without one on a fake device, the kernels interpreted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

import kernels
from kernels.backends import TRITON_CUDA
from kernels.dispatch import using
from server.engine.step_plan import AdmittedRow, PlannedRow, StepPlan
from server.execution.device import CudaDevice
from tests.equivalence import workloads
from tests.execution import late_runners, stepping
from tests.execution.fake_device import OPERATIONS, FakeDevice
from tests.execution.late_plans import GREEDY, IDS, assert_overlapped_steps_are, decode
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import tiny_bloom, tiny_gpt2, tiny_llama, write_checkpoint

# The interpreter warns of what rows that fill up a batch compute: they start from whatever was in
# memory.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SPECS: dict[str, ModelSpec] = {
    "llama": tiny_llama(vocab_size=workloads.VOCAB, num_layers=1, max_positions=64),
    "gpt2": tiny_gpt2(vocab_size=workloads.VOCAB, num_layers=1, max_positions=64),
    "bloom": tiny_bloom(vocab_size=workloads.VOCAB, num_layers=1, max_positions=64),
}

INTERPRETED = replace(TRITON_CUDA, device_type="cpu")
_REAL = {name: getattr(kernels, name) for name in (*OPERATIONS, "AttentionWorkspace")}


def _interpreted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with using(INTERPRETED):
            return function(*args, **kwargs)

    return run


def install_interpreted(device: FakeDevice, patch: pytest.MonkeyPatch) -> None:
    """Routes every public kernel through the device to kernels.gpu."""
    patch.setattr(kernels, "AttentionWorkspace", _interpreted(_REAL["AttentionWorkspace"]))
    for name in OPERATIONS:
        patch.setattr(kernels, name, device.kernel(_interpreted(_REAL[name])))


def plans() -> list[StepPlan]:
    """Prompts, scored and not, mixed with decoding; a fork; three rows in a batch of four."""
    scored = replace(GREEDY, prompt_logprobs=2, logit_bias=((5, 1.0),))
    drawn = replace(workloads.SEEDED, logprobs=1)
    first = stepping.admitted(IDS[:18], drawn, (2, 1))
    second = stepping.admitted(IDS[3:9], scored, (3,), row=2)
    fork = AdmittedRow(1, tuple(IDS[:18]), 18, 17, drawn, 1, ((2, 5),))
    return [
        StepPlan(1, rows=(PlannedRow(0, 18, samples=True),), admitted=(first,)),
        replace(
            decode(2, [0, 1], admitted=(fork, second), block_copies=((1, 5),)),
            rows=(
                PlannedRow(0, 1, samples=True),
                PlannedRow(2, 6, samples=True, num_prompt_logits=5, min_tokens_pending=True),
                PlannedRow(1, 1, samples=True),
            ),
        ),
        decode(3, [0, 2, 1]),
        decode(4, [0, 2, 1]),
        decode(5, [1, 0], released=(2,)),
    ]


@pytest.mark.parametrize(
    ("family", "batch_invariant"),
    [
        ("llama", False),
        pytest.param("llama", True, marks=pytest.mark.slow),
        pytest.param("gpt2", False, marks=pytest.mark.slow),
        pytest.param("bloom", False, marks=pytest.mark.slow),
    ],
)
def test_the_kernels_of_a_gpu_answer_as_a_cpu_does(
    family: str,
    batch_invariant: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
) -> None:
    write_checkpoint(SPECS[family], tmp_path, seed=3)
    sizes = {"max_model_len": 64, "max_num_batched_tokens": 64, "max_num_seqs": 4, "num_blocks": 8}
    runner = stepping.built(tmp_path, **sizes).runner
    expected = [stepping.step(runner, plan) for plan in plans()]
    built = late_runners.build(
        tmp_path,
        monkeypatch,
        device=CudaDevice() if device.type == "cuda" else FakeDevice(),
        install=install_interpreted,
        batch_invariant=batch_invariant,
        **sizes,
    )
    assert_overlapped_steps_are(expected, built.runner, plans())
    assert built.runner.graphs.captured == (2, 4)

"""Each phase of the plan against the operation that it stands for, and not the largest alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import kernels
from server.execution.build import BuiltRunner, build_runner
from server.execution.layer_parts import Attention
from server.execution.live_bytes import LiveBytes
from server.execution.warm_up import largest_plan
from tests.engine_configs import engine_config
from tests.execution.large_steps import build
from tests.parity.family_checkpoints import CASES, write_case

NORMS = ("attention_norm", "mlp_norm")
LINEARS = ("qkv", "attention_output", "up", "down")
OPERATIONS = {
    "embedding": "embedding",
    "rotary_store_kv": "rotary",
    "paged_attention": "attention",
    "activation": "activation",
    "gated_activation": "activation",
    "token_logprobs": "logprobs",
    "sample": "sample",
}
# The work list is bounded by the largest context, and this step's is short; the others lie inside
# of one operation, or are a bound for many forms of it.
UNSEEN = ("work_list", "attention_temporary", "logprob_temporary", "reported", "sample_temporary")
# Listed together though they follow each other: a padded product is over when it is widened.
IN_TURN = {"logits": ("rows_padded",)}
LAYERS = 2  # in the first the norm before attention has one input only


class Phases(LiveBytes):
    """The most bytes alive while each phase's operation runs, by the order of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self._now: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self._now is not None:
            self.peaks[self._now] = max(self.peaks.get(self._now, 0), self.alive_bytes())
        return out

    def watch(
        self, patch: pytest.MonkeyPatch, of: object, operation: str, phase: Callable[[int], str]
    ) -> None:
        """``phase`` names the operation's n-th call."""
        real = getattr(of, operation)

        def watched(*args: Any, **kwargs: Any) -> Any:
            count = self.calls[operation] = self.calls.get(operation, -1) + 1
            with self._during(phase(count)):
                return real(*args, **kwargs)

        patch.setattr(of, operation, watched)

    @contextmanager
    def _during(self, name: str) -> Iterator[None]:
        self._now = name
        try:
            yield
        finally:
            self._now = None


def measured(built: BuiltRunner, patch: pytest.MonkeyPatch) -> dict[str, int]:
    phases, linear = Phases(), kernels.linear

    def norm(count: int) -> str:
        return NORMS[count % len(NORMS)] if count < LAYERS * len(NORMS) else "final_norm"

    for operation in ("add_rms_norm", "add_layer_norm"):
        phases.watch(patch, kernels, operation, norm)
    phases.watch(patch, kernels, "linear", lambda count: LINEARS[count % len(LINEARS)])
    for operation, phase in OPERATIONS.items():
        phases.watch(patch, kernels, operation, lambda _, phase=phase: phase)
    with phases:
        handle = built.runner.forward_layers(largest_plan(built.layout.config), LAYERS)
    patch.setattr(kernels, "linear", linear)  # the unembedding's is a part of its phase
    phases.watch(patch, built.runner.step._sampler, "_logits", lambda _: "logits")
    with phases:
        built.runner.sample(handle, None)
    return phases.peaks


@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["wide mlp", "many wide heads", "gpt2"])
def test_each_phase_holds_what_the_plan_lists_for_it(
    name: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(name, format, tmp_path)
    found = measured(built, monkeypatch)
    for phase in built.layout.phases:
        if phase.name in ("rotary", "store"):
            continue  # one operation does both
        absent = (*UNSEEN, *IN_TURN.get(phase.name, ()))
        unseen = sum(nbytes for tensor, nbytes in phase.tensors if tensor in absent)
        rounded = phase.nbytes // 100  # rows of 16-bit products come padded; a norm sums each up
        assert phase.nbytes - unseen - rounded <= found[phase.name], phase.name
        assert found[phase.name] <= phase.nbytes + rounded, phase.name
    both = [phase for phase in built.layout.phases if phase.name in ("rotary", "store")]
    largest = max(both, key=lambda phase: phase.nbytes)
    unseen = sum(nbytes for tensor, nbytes in largest.tensors if tensor in UNSEEN)
    assert largest.nbytes - unseen <= found["rotary"] <= largest.nbytes


@pytest.mark.parametrize(
    ("family", "case", "phase", "owner", "operation"),
    [
        ("phi", 2, "qk_norm", Attention, "normalise"),
        ("olmo2", 0, "qk_norm", Attention, "normalise"),
        ("apertus", 0, "activation", kernels, "xielu"),
    ],
)
def test_what_few_families_have_holds_what_the_plan_lists(
    family: str,
    case: int,
    phase: str,
    owner: object,
    operation: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bf16: torch copies float32 heads inside of a Layer norm, where nobody sees it."""
    write_case(CASES[family][case], tmp_path)
    sizes = {"num_blocks": 256, "max_num_seqs": 16, "max_num_batched_tokens": 2048}
    sizes["max_model_len"] = 256
    built = build_runner(tmp_path, engine_config(format="bf16", **sizes), warm_up=False)
    phases = Phases()
    phases.watch(monkeypatch, owner, operation, lambda _: phase)
    with phases:
        built.runner.forward_layers(largest_plan(built.layout.config), LAYERS)
    (planned,) = [one for one in built.layout.phases if one.name == phase]
    unseen = sum(nbytes for tensor, nbytes in planned.tensors if tensor in UNSEEN)
    assert planned.nbytes - unseen <= phases.peaks[phase] <= planned.nbytes

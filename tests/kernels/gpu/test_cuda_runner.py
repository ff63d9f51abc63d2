"""The equivalences on a real GPU: captured and overlapped answers are those of one request alone,
run kernel by kernel. Without a GPU, tests/execution holds the same on a fake device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from server.engine.request import EngineRequest
from server.execution.cuda_graphs import GraphMode
from server.execution.device import CudaDevice
from server.execution.gpu_memory import read_allocator
from tests.equivalence import checks, harness
from tests.equivalence.checks import Setting
from tests.execution import late_runners

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@dataclass(frozen=True)
class CudaSetting(Setting):
    """A checkpoint on the GPU, in batch-invariant mode: answers differ by no rounding."""

    patch: pytest.MonkeyPatch = field(kw_only=True)
    graphs: GraphMode = GraphMode.LAZY
    made: list[late_runners.FakeBuilt] = field(default_factory=list)

    def built(self, num_tokens: int = 4096) -> late_runners.FakeBuilt:  # type: ignore[override]
        config = harness.runner_config(self.block_size, num_tokens, batch_invariant=True)
        device = CudaDevice()
        built = late_runners.build_from(
            self.folder, config, self.patch, graphs=self.graphs, device=device
        )
        self.made.append(built)
        return built

    def plain(self, requests: Sequence[EngineRequest]) -> harness.Run:
        eager = replace(self, graphs=GraphMode.OFF)
        return harness.run(eager.built(), requests, one_by_one=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", checks.CHECKS)
@pytest.mark.parametrize("family", checks.SPECS)
def test_captured_and_overlapped_answers_are_those_of_one_alone(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = CudaSetting(checks.write(family, tmp_path), 64, patch=monkeypatch)
    if name == "short of blocks equals plenty":
        one = replace(one, block_size=16)
    checks.CHECKS[name](one)
    captured = [built for built in one.made if built.runner.graphs.captured]
    assert captured
    device = captured[0].runner.device
    assert read_allocator(device.torch_device.index, device.graph_pool).graphs > 0

"""The equivalences of tests/equivalence, held for a runner on a fake device.

The plain side of each comes from the runner on a CPU, so what is held is also that both give the
same answers. With a runner that overlaps the engine keeps two steps in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.execution.cuda_graphs import GraphMode
from server.execution.model_runner import ModelRunner
from tests.engine_configs import engine_config
from tests.equivalence import checks, harness, workloads
from tests.equivalence.checks import Setting
from tests.equivalence.harness import Run
from tests.execution import late_runners


def plain_runs(folder: Path) -> dict[tuple[str, ...], Run]:
    """Every workload as a CPU answers it, one request at a time. Before a fake is installed."""
    known: dict[tuple[str, ...], Run] = {}
    setting = Setting(folder, known=known)
    for requests in (workloads.mixed(), workloads.prefixed(), workloads.growing()):
        setting.plain(requests)
    checks.choices_equal_separate_requests(setting)  # remembers the separate requests' run
    return known


@dataclass(frozen=True)
class LateSetting(Setting):
    """A checkpoint, and how the runner on a fake device runs it."""

    patch: pytest.MonkeyPatch = field(kw_only=True)
    graphs: GraphMode = GraphMode.LAZY
    overlaps: bool = True
    changes: dict[str, int] = field(default_factory=dict)
    made: list[late_runners.FakeBuilt] = field(default_factory=list)

    def built(self, num_tokens: int = 4096) -> late_runners.FakeBuilt:  # type: ignore[override]
        config = engine_config(
            block_size=self.block_size,
            num_blocks=num_tokens // self.block_size,
            max_num_seqs=16,
            max_num_batched_tokens=harness.MAX_TOKENS,
            max_model_len=256,
            max_logit_rows=harness.MAX_TOKENS,
            max_logprobs=8,
        )
        config = engine_config(config, **self.changes)
        if not self.overlaps:
            self.patch.setattr(ModelRunner, "overlaps", property(lambda _: False))
        built = late_runners.build_from(self.folder, config, self.patch, graphs=self.graphs)
        self.made.append(built)
        return built

    def plain(self, requests: object) -> Run:
        """Known before: a CPU's kernels are not to be had while a fake device is installed."""
        names = tuple(request.request_id for request in requests)  # type: ignore[attr-defined]
        assert self.known is not None and names in self.known, "run plainly beforehand"
        return self.known[names]

    @property
    def replays(self) -> int:
        return sum(built.device.replays for built in self.made)


CHECKS: dict[str, Callable[[Setting], None]] = checks.CHECKS

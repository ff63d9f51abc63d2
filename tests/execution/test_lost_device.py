"""Which errors of a GPU end the engine."""

from __future__ import annotations

import pytest
import torch

from server.engine.step_plan import ExecutorLost
from server.execution.device import lost_with_the_context


def test_an_error_of_the_device_itself_loses_the_executor() -> None:
    with pytest.raises(ExecutorLost, match="illegal memory access"), lost_with_the_context():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_launch_that_finds_no_memory_fails_the_step_alone() -> None:
    with pytest.raises(torch.AcceleratorError), lost_with_the_context():
        raise torch.AcceleratorError("CUDA error: out of memory")


def test_running_out_of_memory_fails_the_step_alone() -> None:
    with pytest.raises(torch.OutOfMemoryError), lost_with_the_context():
        raise torch.OutOfMemoryError("CUDA out of memory")

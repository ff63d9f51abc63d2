"""Sampling on a CPU."""

from __future__ import annotations

from torch import Tensor

from kernels import reference
from kernels.sampling_types import SampleOutput, SamplingTensors


def sample(logits: Tensor, params: SamplingTensors) -> SampleOutput:
    return reference.sample(logits, params)


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    return reference.token_logprobs(logits, token_ids, num_top)

"""Samples on the device with scratch that is watched, and holds the tokens to the reference's."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import kernels
from kernels import SampleOutput, SamplingTensors, reference
from kernels.footprint.gpu_sampling import SamplingScratch
from kernels.gpu import sampling
from tests.kernels.sampling_cases import moved

SMALL = {"tile": 64, "group": 8, "capacity": 48}  # many tiles, groups and survivors of few tokens
NUMBERS_OUT_OF_RANGE = pytest.mark.filterwarnings(  # numpy, in the interpreter, warns of them
    "ignore:(invalid value|divide by zero|overflow) encountered:RuntimeWarning"
)


class Watch:
    """Hands out scratch full of rubbish, and keeps it to be looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.regions: dict[str, torch.Tensor] = {}
        make = sampling.regions_of

        def poisoned(scratch: SamplingScratch, device: torch.device) -> dict[str, torch.Tensor]:
            self.regions = make(scratch, device)
            for name, region in self.regions.items():
                region.fill_(-7 if region.dtype != torch.float32 else math.nan)
                assert region.data_ptr() % 16 == 0, name
            return self.regions

        monkeypatch.setattr(sampling, "regions_of", poisoned)


def sampled(
    logits: torch.Tensor, params: SamplingTensors, device: torch.device, **sizes: int
) -> SampleOutput:
    params = moved(params, device)
    logits = logits.to(device)
    scratch = dataclasses.replace(sampling.scratch_of(logits, params), **sizes)
    out = sampling.run(logits, params, scratch)
    return SampleOutput(out.token_ids.cpu(), out.non_finite.cpu())


def check(
    logits: torch.Tensor, params: SamplingTensors, device: torch.device, **sizes: int
) -> SampleOutput:
    before = logits.clone()
    got, wanted = sampled(logits, params, device, **sizes), reference.sample(logits, params)
    assert got.token_ids.tolist() == wanted.token_ids.tolist()
    assert got.non_finite.tolist() == wanted.non_finite.tolist()
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
    return got


def drawing(rows: int, **options: object) -> SamplingTensors:
    defaults = {
        "temperature": torch.ones(rows),
        "key": torch.full((rows,), kernels.as_int64(kernels.derive_key(99, 0))),
        "position": torch.arange(rows),
    }
    return SamplingTensors(**(defaults | options))

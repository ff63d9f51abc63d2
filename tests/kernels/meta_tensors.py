"""What launchers are called with: tensors of the device "meta", which have shapes and no memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
FLOAT8 = torch.float8_e4m3fn
I32, I64 = torch.int32, torch.int64
Launch = Callable[[int], object]  # of an architecture


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")

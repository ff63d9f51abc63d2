"""Whole decode steps as one piece of work: from a packet to tokens that are in their rows.

A backend that has such runs a step again and again without asking the host in between, so that one
plan gives each row several tokens (``StepPlan.num_decode_steps``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from kernels import StepBuffers
from kernels.footprint.row_state import RowLayout, StepTable


@dataclass(frozen=True, slots=True)
class RowBuffers:
    """What rows keep between steps, and where a step's inputs and tokens always lie.

    ``buffers`` are the layout's; ``inputs`` those that a step's are gathered into, of each group of
    the KV cache; ``workspace`` is attention's.
    """

    buffers: Mapping[str, torch.Tensor]
    inputs: Sequence[StepBuffers]
    layout: RowLayout
    table: StepTable
    block_size: int
    workspace: torch.Tensor | None


class DecodeProgram(Protocol):
    def run(self, packet: torch.Tensor, num_rows: int, passes: int, *, truncates: bool) -> None:
        """``passes`` tokens for each of the packet's rows, which have one token to compute each.

        A row chooses greedily or draws; ``truncates`` says that some draw from the best tokens
        alone. The tokens are in the rows then, and in the buffer ``chosen`` as [passes, num_rows],
        -1 where the logits were not all numbers; what a row chooses behind that means nothing.
        """
        ...

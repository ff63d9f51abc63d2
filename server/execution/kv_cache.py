"""The paged KV cache's memory: one tensor, every page resident from the start."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import kernels


class KVCache:
    """Keys and values of all layers: [layer][block][K|V][kv_head][token][head_dim].

    With ``poison`` every block handed to a row is filled with NaN before the step that first
    writes it. A read of a slot that its row never wrote then shows in the logits, instead of
    passing for whatever an earlier owner left there. For tests; it costs a write of each block.
    """

    def __init__(self, tensor: torch.Tensor, *, poison: bool = False) -> None:
        self.tensor = tensor
        self._poison = poison
        if poison:
            tensor.fill_(float("nan"))

    @property
    def block_size(self) -> int:
        return self.tensor.shape[4]

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, (source, destination), in every layer."""
        if not pairs:
            return
        sources, destinations = torch.tensor(pairs, dtype=torch.int64).unbind(1)
        kernels.copy_blocks(self.tensor, sources, destinations)

    def hand_out(self, block_ids: Sequence[int]) -> None:
        """Marks blocks as new to their row: nothing in them may be read before it is written."""
        if self._poison and block_ids:
            ids = torch.tensor(block_ids, dtype=torch.int64)
            self.tensor.index_fill_(1, ids, float("nan"))

"""How much of a checkpoint's own description is read, at most: what it costs to say yes or no.

Every bound is told in the refusal. They are many times what is published: a Llama of 405 billion
parameters has 1,138 tensors in 191 files, described by some 200 KB in all. At the bounds a folder
is judged in about a second, on one core.
"""

from __future__ import annotations

from weights.errors import CheckpointError

MAX_TENSORS = 65_536
MAX_FILES = 2_048  # that hold weights
MAX_HEADER_BYTES = 32 << 20  # of all files together
MAX_INDEX_BYTES = 32 << 20
MAX_HEADER_VALUES = 16 * MAX_TENSORS  # JSON's, names included; a tensor of rank 2 has 13
MAX_INDEX_VALUES = 3 * MAX_TENSORS  # a tensor has two


class DescriptionBudget:
    """What the headers of one checkpoint may still take. Every method raises CheckpointError."""

    def __init__(self) -> None:
        self._header_bytes = MAX_HEADER_BYTES
        self._tensors = MAX_TENSORS

    def take_header(self, length: int, file: str) -> None:
        """Before ``length`` bytes of a header are read."""
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{file}: the header length is {length} bytes; at most {MAX_HEADER_BYTES} are read"
            )
        self._header_bytes -= length
        if self._header_bytes < 0:
            raise CheckpointError(
                f"{file}: with this file the headers take more than {MAX_HEADER_BYTES} bytes, "
                "which is the most that are read"
            )

    def take_tensors(self, count: int, file: str) -> None:
        """Before so many are made of a header."""
        self._tensors -= count
        if self._tensors < 0:
            raise CheckpointError(
                f"{file}: with its {count} tensors the checkpoint has more than {MAX_TENSORS}, "
                "which is the most that are read"
            )

"""The one error of this folder."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint folder that cannot be served.

    The message names the file and, where there is one, the tensor or the key at fault, and says
    what to do about it.
    """

"""Log-probability tensors -> the packed little-endian arrays that leave the executor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from server.engine.step_plan import LogprobArrays


def pack_logprobs(
    ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32], num_top: int
) -> LogprobArrays:
    """[P, 1 + at least num_top] ids and nats -> the first 1 + num_top columns, packed."""
    width = 1 + num_top
    return LogprobArrays(
        num_positions=len(ids),
        width=width,
        token_ids=ids[:, :width].astype("<i4").tobytes(),
        logprobs=logprobs[:, :width].astype("<f4").tobytes(),
    )


def unpack_logprobs(
    arrays: LogprobArrays,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The inverse: ids and nats, each [num_positions, width]."""
    shape = (arrays.num_positions, arrays.width)
    ids = np.frombuffer(arrays.token_ids, dtype="<i4").reshape(shape)
    return ids, np.frombuffer(arrays.logprobs, dtype="<f4").reshape(shape)

"""Captured decode steps, by batch size.

A decode step is a few hundred small kernels, and starting them one by one takes the host longer
than the device needs to run them. Captured once, they start as one. A captured step has a fixed
number of rows, so a batch takes the next size up; the rows that fill it up write nothing.

Inside a graph: gathering the step's inputs from the rows, the whole model, and the logits of every
row. Outside: uploading the packet that says which rows these are, and sampling. What sampling runs
depends on what the rows ask for (penalties, truncation, lists of biases of any length), which would
multiply the graphs, and it is a handful of launches beside hundreds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum

from server.execution.device import Device, Graph
from server.execution.out_of_memory import is_out_of_memory
from server.memory.graph_sizes import next_size

Watch = Callable[[], AbstractContextManager[None]]


class GraphMode(StrEnum):
    OFF = "off"  # every step is started kernel by kernel
    LAZY = "lazy"  # a size is captured when a batch first needs it
    START = "start"  # all sizes are captured before the first request


class DecodeGraphs:
    """
    Args:
        sizes: batch sizes, rising.
        step: starts a decode step of so many rows, in the order of capture.
        prepare: makes a step that is run for the capture's sake change nothing.
        around_capture: entered for every capture: the memory accounting sees what it takes.
    """

    def __init__(
        self,
        device: Device,
        sizes: tuple[int, ...],
        step: Callable[[int], None],
        prepare: Callable[[], None],
        *,
        mode: GraphMode = GraphMode.LAZY,
        around_capture: Watch = nullcontext,
    ) -> None:
        self.sizes = sizes if mode is not GraphMode.OFF else ()
        self.mode = mode
        self._device = device
        self._step = step
        self._prepare = prepare
        self._around_capture = around_capture
        self._captured: dict[int, Graph] = {}

    @property
    def captured(self) -> tuple[int, ...]:
        return tuple(sorted(self._captured))

    def size_for(self, num_rows: int) -> int | None:
        """The size that a decode batch of ``num_rows`` runs at; None where it runs uncaptured."""
        return next_size(self.sizes, num_rows)

    def capture_all(self) -> None:
        """Largest first, so that the smaller ones find room in what the pool already has."""
        for size in reversed(self.sizes):
            self.graph(size)

    def graph(self, size: int) -> Graph | None:
        """The graph of a size, captured now if it was not; then the host waits for the device.

        None where there was no memory for it: the size is given up, and its steps run uncaptured.
        """
        if size not in self._captured:
            try:
                self._device.run(self._prepare)
                with self._around_capture():
                    self._captured[size] = self._device.capture(lambda: self._step(size))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.sizes = tuple(other for other in self.sizes if other != size)
                logging.getLogger(__name__).warning(
                    "no memory to capture decode steps of %d rows; they run uncaptured", size
                )
                return None
        return self._captured[size]

"""Where the values of a compiled step lie: one piece of memory for all of them, laid out ahead.

A backend that runs a step as one program (server.execution.native_decoder) has every value at an
address that is there for good. What layers hand on to each other has a place of its own; what lives
inside a layer shares the rest with whatever is not alive at the same time. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.memory.layer_program import Step, embedding_program, given, layer_program
from weights.spec import ModelSpec

ALIGNED = 16  # channels: a cache line of float32


@dataclass(frozen=True, slots=True)
class ValuePlaces:
    """``places`` of each program: a value's (first channel, channels), by name. A channel is one
    number for each token of the largest step. ``channels`` are all that there are."""

    embedding: Mapping[str, tuple[int, int]]
    layers: tuple[Mapping[str, tuple[int, int]], ...]  # of each of kinds_of_layers
    handed_on: frozenset[str]  # from layer to layer
    channels: int


def value_places(model: ModelSpec) -> ValuePlaces:
    """The places of every value of a step of ``model``, and how many channels they come to."""
    before = embedding_program(model)
    programs = [layer_program(model.as_layer(kind)) for kind in model.kinds_of_layers]
    widths = _widths((before, *programs))
    handed_on = {name for program in programs for name in given(program)}
    handed_on |= {"hidden"}
    shared: dict[str, tuple[int, int]] = {}
    top = 0
    for name in sorted(handed_on):
        shared[name] = (top, widths[name])
        top += _aligned(widths[name])
    made = [_placed(program, shared, top) for program in (before, *programs)]
    places = [places for places, _ in made]
    channels = max(end for _, end in made)
    return ValuePlaces(places[0], tuple(places[1:]), frozenset(handed_on), channels)


def _aligned(channels: int) -> int:
    return -(-channels // ALIGNED) * ALIGNED


def _widths(programs: Sequence[Sequence[Step]]) -> dict[str, int]:
    widths: dict[str, int] = {}
    for program in programs:
        for step in program:
            for value in step.writes:
                widths[value.name] = max(widths.get(value.name, 0), value.channels)
    return widths


def _placed(
    program: Sequence[Step], shared: Mapping[str, tuple[int, int]], first: int
) -> tuple[dict[str, tuple[int, int]], int]:
    """The program's values, and the channel behind the last: those alive at the same step lie
    apart, what a step reads from what it writes too."""
    spans: dict[str, tuple[int, int]] = {}
    for at, step in enumerate(program):
        for name in (*step.reads, *(value.name for value in step.writes)):
            begin, _ = spans.get(name, (at, at))
            spans[name] = (begin, at)
    widths = _widths((program,))
    places = dict(shared)
    own: list[str] = []
    end = first
    for name, (begin, last) in sorted(spans.items(), key=lambda one: (one[1][0], one[0])):
        if name in shared:
            continue
        taken = sorted(
            places[other] for other in own if spans[other][0] <= last and begin <= spans[other][1]
        )
        start = first
        for place, channels in taken:
            if place - start >= widths[name]:
                break
            start = max(start, place + _aligned(channels))
        places[name] = (start, widths[name])
        own.append(name)
        end = max(end, start + _aligned(widths[name]))
    return places, end

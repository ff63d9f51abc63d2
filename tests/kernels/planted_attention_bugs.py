"""Mistakes in the CPU backend's attention, planted one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from pytest import MonkeyPatch
from torch import Tensor

from kernels.cpu import attention_scores, attention_work
from kernels.cpu.attention_scores import Scoring
from kernels.cpu.attention_work import ItemBlocks, Segment, StepRows, Wave, WorkList


@dataclass(frozen=True)
class PlantedBug:
    name: str
    case: str  # of feature_cases.CASES, which must notice it
    apply: Callable[[MonkeyPatch], None]


def _looked_up_all_the_same(patch: MonkeyPatch) -> None:
    real = ItemBlocks.columns

    def columns(self: ItemBlocks, segment: Segment, block_size: int) -> Tensor:
        every = None if self.first is None else torch.zeros_like(self.first)
        return real(replace(self, first=every), segment, block_size)

    patch.setattr(ItemBlocks, "columns", columns)


def _window_one_longer(patch: MonkeyPatch) -> None:
    real = StepRows.plan

    def plan(self: StepRows, window: int) -> WorkList:
        return real(self, window and window + 1)

    patch.setattr(StepRows, "plan", plan)


def _window_of_the_last_query(patch: MonkeyPatch) -> None:
    """Key tiles begin where the window of an item's last query does."""
    real = StepRows._item

    def item(
        self: StepRows, row: int, token: int, count: int, position: int, *rest: int
    ) -> attention_work._Item:
        made = real(self, row, token, count, position, *rest)
        late = made.full_start // self.shape.key_step * self.shape.key_step
        return replace(
            made,
            base=made.base + late,
            oldest=made.base + late,
            position=made.position - late,
            full_start=made.full_start - late,
            full_end=made.full_end - late,
            end=made.end - late,
        )

    patch.setattr(StepRows, "_item", item)


def _scoring(change: Callable[[Scoring], Scoring]) -> Callable[[MonkeyPatch], None]:
    real = Scoring.of

    def apply(patch: MonkeyPatch) -> None:
        patch.setattr(Scoring, "of", lambda *given, **how: change(real(*given, **how)))

    return apply


def _slopes_rolled(how: Scoring) -> Scoring:
    return replace(how, slopes=None if how.slopes is None else how.slopes.roll(1, dims=1))


def _sinks_ignored(patch: MonkeyPatch) -> None:
    patch.setattr("kernels.cpu.attention._sink", lambda *_: None)


def _nothing_hidden(patch: MonkeyPatch) -> None:
    real = attention_scores._hidden

    def hidden(segment: Segment, keys: Tensor, wave: Wave) -> Tensor:
        return real(segment, keys, wave).zero_()

    patch.setattr(attention_scores, "_hidden", hidden)


BUGS = (
    PlantedBug("window + 1", "window one past a block", _window_one_longer),
    PlantedBug("a block behind the window is read", "window of a block", _looked_up_all_the_same),
    PlantedBug("tiles begin too late", "window, sinks", _window_of_the_last_query),
    PlantedBug("slope of another head", "ALiBi", _scoring(_slopes_rolled)),
    PlantedBug("cap off", "soft cap", _scoring(lambda how: replace(how, soft_cap=0.0))),
    PlantedBug("sink ignored", "sinks", _sinks_ignored),
    PlantedBug("no mask under a cap", "soft cap", _nothing_hidden),
    PlantedBug("no mask beside ALiBi", "ALiBi", _nothing_hidden),
)

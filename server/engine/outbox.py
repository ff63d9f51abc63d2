"""Outbox: what happened since the last frame, in order."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.engine.events import (
    Accepted,
    ChoiceOutput,
    EngineFrame,
    PromptOutput,
    Refused,
    StepStats,
)


@dataclass(slots=True)
class Outbox:
    accepted: list[Accepted] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    prompts: list[PromptOutput] = field(default_factory=list)
    choices: list[ChoiceOutput] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.accepted or self.refused or self.prompts or self.choices)

    def collect(self, stats: StepStats | None = None) -> EngineFrame:
        """A frame of everything, after which the outbox is empty."""
        frame = EngineFrame(
            accepted=tuple(self.accepted),
            refused=tuple(self.refused),
            prompts=tuple(self.prompts),
            choices=tuple(self.choices),
            stats=stats,
        )
        for events in (self.accepted, self.refused, self.prompts, self.choices):
            events.clear()
        return frame

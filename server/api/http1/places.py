"""Places: who may be connected at once, and who goes when there are too many.

Connections that only wait are worth least: nothing of a request is lost with them, and a client
whose kept connection is closed opens another. So when all places are taken, the one that has been
quiet for longest makes room: first those that never asked for anything, then those kept between
requests. One that has just come is left its second to speak, or a burst of honest clients would
throw itself out.

Beyond that there is a reserve for questions about the server's own state. Only those are answered
there, in one request each; in the reserve the oldest that has not asked leaves at once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from server.api.state import HttpLimits

PROBES = frozenset(("/health", "/ready", "/metrics"))


class Place(enum.Enum):
    ORDINARY = "ordinary"
    RESERVE = "reserve"  # for PROBES only


class Quiet(enum.Enum):
    """Why a connection has nothing under way. In the order in which they leave."""

    LEAVING = "leaving"  # answered for the last time, and not gone
    SILENT = "silent"  # has not asked for anything yet
    KEPT = "kept"  # between two requests


class Guest(Protocol):
    def make_room(self, why: Quiet) -> None:
        """Closes the connection: all places are taken, and it is quiet."""
        ...


@dataclass
class _Room:
    """The guests of one kind of place. Quiet ones with the time since when, oldest first."""

    size: int
    guests: set[Guest] = field(default_factory=set)
    quiet: dict[Quiet, dict[Guest, float]] = field(
        default_factory=lambda: {why: {} for why in Quiet}
    )

    def forget_quiet(self, guest: Guest) -> None:
        for since in self.quiet.values():
            since.pop(guest, None)


class Places:
    """The places of one server. ``clock`` gives seconds, as time.monotonic."""

    def __init__(self, limits: HttpLimits, clock: Callable[[], float]) -> None:
        self._rooms = {
            Place.ORDINARY: _Room(limits.max_connections),
            Place.RESERVE: _Room(limits.probe_connections),
        }
        self._patience = {Place.ORDINARY: limits.quiet_s, Place.RESERVE: 0.0}
        self._places: dict[Guest, Place] = {}
        self._clock = clock

    def enter(self, guest: Guest) -> Place | None:
        """A place for a new connection, maybe one that a quiet one leaves; None: there is none."""
        for place, room in self._rooms.items():
            if len(room.guests) < room.size or self._make_room(place):
                room.guests.add(guest)
                self._places[guest] = place
                self.is_quiet(guest, Quiet.SILENT)
                return place
        return None

    def leave(self, guest: Guest) -> None:
        place = self._places.pop(guest, None)
        if place is not None:
            self._rooms[place].forget_quiet(guest)
            self._rooms[place].guests.discard(guest)

    def is_quiet(self, guest: Guest, why: Quiet) -> None:
        place = self._places.get(guest)
        if place is not None:
            self.is_busy(guest)
            self._rooms[place].quiet[why][guest] = self._clock()

    def is_busy(self, guest: Guest) -> None:
        place = self._places.get(guest)
        if place is not None:
            self._rooms[place].forget_quiet(guest)

    def make_room(self) -> bool:
        """Lets go of one quiet connection, whatever it is. False where there is none."""
        return any(self._make_room(place, patience=0.0) for place in self._rooms)

    def _make_room(self, place: Place, patience: float | None = None) -> bool:
        room = self._rooms[place]
        patience = self._patience[place] if patience is None else patience
        for why, since in room.quiet.items():
            guest = next(iter(since), None)
            wait = 0.0 if why is Quiet.LEAVING else patience
            if guest is not None and since[guest] <= self._clock() - wait:
                self.leave(guest)
                guest.make_room(why)
                return True
        return False

"""Who is connected when there are more clients than places."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

from server.api.http1.places import PROBES, Place, Places, Quiet
from server.api.state import HttpLimits
from tests.api.api_fakes import FakeEngine, saying
from tests.api.http1.socket_stories import answer, request_bytes, running, until
from tests.soak.heavy_clients import GoodClient, silent_connections

QUIET_S = 1.0


@dataclass(eq=False)
class Guest:
    left: list[Quiet] = field(default_factory=list)

    def make_room(self, why: Quiet) -> None:
        self.left.append(why)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def places(clock: Clock, size: int = 2, reserve: int = 2) -> Places:
    limits = HttpLimits(max_connections=size, probe_connections=reserve, quiet_s=QUIET_S)
    return Places(limits, clock)


def entered(found: Places, count: int, place: Place) -> list[Guest]:
    guests = [Guest() for _ in range(count)]
    assert [found.enter(guest) for guest in guests] == [place] * count
    return guests


def test_a_new_connection_is_left_its_time_to_speak() -> None:
    clock = Clock()
    found = places(clock)
    first, second = entered(found, 2, Place.ORDINARY)
    clock.now += QUIET_S - 0.01
    assert found.enter(Guest()) is Place.RESERVE
    clock.now += 0.01
    assert found.enter(Guest()) is Place.ORDINARY
    assert (first.left, second.left) == ([Quiet.SILENT], [])


def test_the_silent_leave_before_the_kept_and_the_busy_never() -> None:
    clock = Clock()
    found = places(clock, size=4)
    busy, kept, silent, late = entered(found, 4, Place.ORDINARY)
    found.is_quiet(kept, Quiet.KEPT)
    found.is_busy(busy)
    clock.now += 60
    found.is_quiet(late, Quiet.KEPT)
    clock.now += 60
    for _ in range(3):
        (last,) = entered(found, 1, Place.ORDINARY)
        found.is_busy(last)
    assert [guest.left for guest in (busy, kept, silent, late)] == [
        [], [Quiet.KEPT], [Quiet.SILENT], [Quiet.KEPT],
    ]  # fmt: skip
    assert found.enter(Guest()) is Place.RESERVE


def test_the_oldest_in_the_reserve_leaves_at_once_unless_it_has_asked() -> None:
    found = places(Clock())
    entered(found, 2, Place.ORDINARY)
    first, second = entered(found, 2, Place.RESERVE)
    found.is_busy(first)
    (third,) = entered(found, 1, Place.RESERVE)
    assert (first.left, second.left) == ([], [Quiet.SILENT])
    found.is_busy(third)
    assert found.enter(Guest()) is None
    found.leave(first)
    assert found.enter(Guest()) is Place.RESERVE


def test_who_was_answered_for_the_last_time_leaves_at_once_and_first() -> None:
    found = places(Clock(), size=3)
    silent, kept, leaving = entered(found, 3, Place.ORDINARY)
    found.is_quiet(kept, Quiet.KEPT)
    found.is_busy(leaving)
    found.is_quiet(leaving, Quiet.LEAVING)
    entered(found, 1, Place.ORDINARY)
    assert [guest.left for guest in (silent, kept, leaving)] == [[], [], [Quiet.LEAVING]]
    assert found.enter(Guest()) is Place.RESERVE


def test_where_descriptors_lack_a_quiet_connection_goes_however_new_it_is() -> None:
    found = places(Clock(), size=2)
    silent, busy = entered(found, 2, Place.ORDINARY)
    found.is_busy(busy)
    (probe,) = entered(found, 1, Place.RESERVE)
    assert [found.make_room() for _ in range(3)] == [True, True, False]
    assert [guest.left for guest in (silent, busy, probe)] == [
        [Quiet.SILENT], [], [Quiet.SILENT],
    ]  # fmt: skip


async def test_512_silent_connections_beside_probes_and_a_request() -> None:
    async with (
        running(FakeEngine(saying("ok")), max_connections=512, quiet_s=60.0) as (port, _),
        silent_connections("127.0.0.1", port, 512) as silent,
    ):
        for path in sorted(PROBES) * 3:
            assert await GoodClient("127.0.0.1", port, path).ask() == 200
        data = await answer(port, request_bytes())
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        assert json.loads(body)["error"]["code"] == "too_many_connections"
        # The reserve fills up with silent ones too: its oldest leave, a probe does not wait.
        async with silent_connections("127.0.0.1", port, 70):
            for path in sorted(PROBES):
                assert await GoodClient("127.0.0.1", port, path).ask() == 200
        assert not any(reader.at_eof() for reader, _ in silent)


async def test_a_request_takes_the_place_of_the_connection_that_was_silent_for_longest() -> None:
    async with (
        running(FakeEngine(saying("ok")), max_connections=512, quiet_s=0.0) as (port, state),
        silent_connections("127.0.0.1", port, 512) as silent,
    ):
        asked = request_bytes().replace(b"host: x", b"host: x\r\nconnection: close")
        assert (await answer(port, asked)).startswith(b"HTTP/1.1 200 ")
        gone = await silent[0][0].read()
        assert gone.startswith(b"HTTP/1.1 503 ")
        assert b"had not asked for anything" in gone
        assert not silent[1][0].at_eof()
        assert state.metrics.http[-2:] == [
            ("unmatched", "OTHER", 503), ("/v1/completions", "POST", 200),
        ]  # fmt: skip


async def test_a_connection_of_the_reserve_answers_one_probe_and_closes() -> None:
    async with (
        running(FakeEngine(), max_connections=1, quiet_s=60.0) as (port, _),
        silent_connections("127.0.0.1", port, 1),
    ):
        asked = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
        data = await answer(port, asked + asked)
        assert data.count(b"HTTP/1.1 200 OK") == 1
        assert b"connection: close" in data


async def test_past_the_reserve_a_connection_is_refused_at_once() -> None:
    engine = FakeEngine(token_delay=60)
    async with running(engine, max_connections=1, probe_connections=0) as (port, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes())
        await until(lambda: bool(engine.open))
        assert (await answer(port, b"")).startswith(b"HTTP/1.1 503 ")
        writer.close()

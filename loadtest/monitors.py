"""What is watched beside a load: the server's metrics, a canary, the client's lag, a display."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from loadtest.client.process import LoadMeter
from loadtest.load.chaos import Canary
from loadtest.load.driver import Driver
from loadtest.server.scrape import Reading, Scraper
from loadtest.stats.records import RequestRecord

_SHOW_S = 0.5


@dataclass(frozen=True, slots=True)
class Moment:
    """What a progress display shows."""

    second: float
    driver: Driver
    records: list[RequestRecord]
    lag: float


Show = Callable[[Moment], None]


class Watch:
    """``begin``, then the load within ``beside``, then ``end``.

    Args:
        scrape: read the server's metrics.
        canary: None asks none.
        show: told of a Moment twice a second.
    """

    def __init__(
        self,
        driver: Driver,
        scraper: Scraper,
        canary: Canary | None,
        *,
        scrape: bool,
        show: Show | None,
    ) -> None:
        self._driver = driver
        self._scraper = scraper
        self._canary = canary
        self._scrapes = scrape
        self._show = show
        self._before: Reading | None = None
        self.meter = LoadMeter()

    async def begin(self) -> None:
        """How the server stands, and what the canary answers, before there is a load."""
        if self._scrapes:
            self._before = await self._scraper.once()
        if self._canary is not None:
            await self._canary.ask(self._driver.now())

    @contextlib.asynccontextmanager
    async def beside(self, records: list[RequestRecord]) -> AsyncIterator[None]:
        """``records`` are those that have ended so far, for the display."""
        async with self.meter:
            tasks = [asyncio.ensure_future(watcher) for watcher in self._watchers(records)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def end(self, *, settles: bool) -> None:
        """``settles``: wait for the server's gauges to return to where they were."""
        if settles:
            await self._scraper.settle(self._before)
        await self._scraper.close()
        if self._canary is not None:
            await self._canary.close()

    def _watchers(self, records: list[RequestRecord]) -> Iterator[Awaitable[None]]:
        if self._before:  # there are metrics to read
            yield self._scraper.watch()
        if self._canary is not None:
            yield self._canary.watch(self._driver.start)
        if self._show is not None:
            yield self._display(self._show, records)

    async def _display(self, show: Show, records: list[RequestRecord]) -> None:
        while True:
            show(Moment(self._driver.now(), self._driver, records, self.meter.lag))
            await asyncio.sleep(_SHOW_S)

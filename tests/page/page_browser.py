"""Debian's Chromium, and a page in it that hears of everything that goes wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SOON_MS = 60_000  # ends a test that hangs: no measure of a server that is slow
# The table's rows by band: each column's exact number and its text.
LEDGER = """() => Object.fromEntries([...document.querySelectorAll("#ledger tr[data-band]")].map(
    row => [row.dataset.band, Object.fromEntries([...row.querySelectorAll("data")].map(
        data => [data.dataset.column, [data.value, data.textContent]]))]))"""
AREAS = "all => Object.fromEntries(all.map(one => [one.dataset.band, one.getAttribute('d')]))"
REFUSED = re.compile(r"Failed to load resource: net::ERR_CONNECTION_REFUSED")


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own. Without one the test is skipped, in CI it fails."""
    if not CHROMIUM.exists():
        missing = f"{CHROMIUM} is not there. On Debian: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield found
        finally:
            found.close()


class Visit:
    """One tab: the page, what it asked for, and what it complained of."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(SOON_MS)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._hear(message.type, message.text))

    def open(self) -> Visit:
        self.page.goto(self.url)
        self.connected("live")
        return self

    def connected(self, state: str) -> None:
        """Waits until the page says so of the server: live, down, away."""
        shown = self.page.locator("#connection")
        expect(shown).to_have_attribute("data-state", state, timeout=SOON_MS)

    def ended(self, state: str, patience_ms: float = SOON_MS) -> None:
        """Waits until the playground's answer is done, stopped or error."""
        outcome = self.page.locator("#outcome")
        expect(outcome).to_have_attribute("data-state", state, timeout=patience_ms)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).text_content() or ""

    def ledger(self) -> dict[str, dict[str, list[str]]]:
        """The memory table: {band: {"now": [exact bytes, text], "peak": ..., "planned": ...}}."""
        return self.page.evaluate(LEDGER)  # type: ignore[no-any-return]

    def areas(self) -> dict[str, str]:
        """The outlines in the graph by band."""
        return self.page.eval_on_selector_all("#chart .area", AREAS)  # type: ignore[no-any-return]

    def freeze(self, wanted: Callable[[Any], bool] = lambda answer: True) -> list[Any]:
        """Lets polls of /memory through until one is as wanted, and holds all later ones: the page
        stays at that answer, which the list then has."""
        answers: list[Any] = []

        def through(route: Route) -> None:
            if answers:
                return  # never answered
            answer = route.fetch()
            if wanted(answer.json()):
                answers.append(answer.json())
            route.fulfill(response=answer)

        self.page.route("**/memory", through)
        with self.page.expect_request("**/memory"):
            pass
        while len(self.requests_of("memory")) < 1 or not answers:
            self.page.wait_for_timeout(20)
        with self.page.expect_request("**/memory"):
            pass  # the page has taken the answer, and asks again
        return answers

    def requests_of(self, path: str) -> list[str]:
        return [url for url in self.requests if url == self.url + path]

    def check(self) -> None:
        """Nobody complained, and nothing was asked of anybody else."""
        assert self.complaints == []
        foreign = [url for url in self.requests if not url.startswith((self.url, "data:"))]
        assert foreign == []
        assert self.requests

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)


Open = Callable[..., Visit]


@contextmanager
def visits(chromium: Browser) -> Iterator[Open]:
    """Opens tabs, each in a context of its own, and checks each at the end."""
    opened: list[Visit] = []

    def begin(url: str, **context: Any) -> Visit:
        options = {"viewport": {"width": 1280, "height": 900}, **context}
        visit = Visit(chromium.new_context(**options).new_page(), url)
        opened.append(visit)
        return visit.open()

    try:
        yield begin
        for visit in opened:
            visit.check()
    finally:
        for visit in opened:
            visit.page.context.close()

"""The fakes of the API, the real server's helper, and a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.page.page_browser import Open, browser, visits
from tests.page.page_server import PageServer


# Of a module, no more: while it is open, the main thread has an event loop that others would meet.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Open]:
    """Opens the page of a server: ``visit(url, color_scheme="dark", ...)``."""
    with visits(chromium) as begin:
        yield begin


@pytest.fixture
def fake() -> Iterator[PageServer]:
    with PageServer() as server:
        yield server

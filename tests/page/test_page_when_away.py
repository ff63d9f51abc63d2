"""The page while the engine, the server or an answer of use is missing."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.page.page_browser import REFUSED, Open
from tests.page.page_server import PageServer

pytestmark = pytest.mark.slow
WEIGHTS = "#chart .area[data-band=weights]"
TWO_STRETCHES = re.compile("^M[^M]+M[^M]+$")


def test_an_engine_that_is_not_there_is_said_and_leaves_a_gap(
    visit: Open, fake: PageServer
) -> None:
    page = visit(fake.url)
    fake.figures.values["quire_engine_up"] = 0
    fake.figures.devices[0]["ready"] = False
    page.connected("down")
    assert page.text("#connection") == "the engine is not ready"
    fake.figures.values["quire_engine_up"] = 1
    fake.figures.devices[0]["ready"] = True
    page.connected("live")
    expect(page.page.locator(WEIGHTS)).to_have_attribute("d", TWO_STRETCHES)


def test_a_server_that_goes_and_comes_back_is_said(visit: Open, fake: PageServer) -> None:
    page = visit(fake.url)
    fake.stop()
    page.connected("away")
    assert page.text("#connection").startswith("no answer since ")
    page.page.fill("#prompt", "a")
    page.page.click("#run")
    page.ended("error")
    assert page.text("#outcome").startswith("The server cannot be reached")
    fake.start()
    page.connected("live")
    expect(page.page.locator(WEIGHTS)).to_have_attribute("d", TWO_STRETCHES)
    # The browser itself reports each connection that was refused.
    page.complaints = [one for one in page.complaints if not REFUSED.match(one)]


@pytest.mark.parametrize(
    ("path", "status", "body", "said"),
    [
        ("memory", 401, "{}", "/memory answers 401 since "),
        ("metrics", 503, "", "/metrics answers 503 since "),
        ("memory", 200, "<html>sign in</html>", "/memory answers no memory report since "),
        ("memory", 200, '{"ok": true}', "/memory answers no memory report since "),
    ],
)
def test_an_answer_of_no_use_is_called_what_it_is(
    visit: Open, fake: PageServer, path: str, status: int, body: str, said: str
) -> None:
    page = visit(fake.url)
    page.page.route(f"**/{path}", lambda route: route.fulfill(status=status, body=body))
    page.connected("away")
    assert page.text("#connection").startswith(said)
    page.page.unroute_all()
    page.connected("live")
    page.complaints = [one for one in page.complaints if f"status of {status}" not in one]


def test_a_page_of_another_version_says_so(visit: Open, fake: PageServer) -> None:
    page = visit(fake.url)
    expect(page.page.locator("#fact-version")).to_have_text("1.2.3")
    version = '{"version": "2.0.0", "dtype": "f32", "device": "cpu"}'
    page.page.route("**/version", lambda route: route.fulfill(body=version))
    fake.stop()
    page.connected("away")
    fake.start()
    told = "2.0.0, this page is of 1.2.3: reload it"
    expect(page.page.locator("#fact-version")).to_have_text(told)
    page.complaints = [one for one in page.complaints if not REFUSED.match(one)]

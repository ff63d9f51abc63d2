"""The page for everybody: axe's rules, the keyboard alone, small screens, calm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.page.page_browser import Open, Visit
from tests.page.page_server import MIB, PageServer, device

pytestmark = pytest.mark.slow
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
# How far the content moved by itself, as the browser counts it.
SHIFTS = """() => new Promise(resolve => {
    new PerformanceObserver(list => resolve(list.getEntries().reduce((sum, e) => sum + e.value, 0)))
        .observe({type: "layout-shift", buffered: true});
    setTimeout(() => resolve(0), 300);
})"""
# The least distance between two figures of a row, in pixels.
APART = """() => Math.min(...[...document.querySelectorAll("#ledger .kind")].flatMap(row => {
    const cells = [...row.querySelectorAll("data")].map(one => one.getBoundingClientRect());
    return cells.slice(1).map((one, before) => one.left - cells[before].right);
}))"""
FOCUSED = """() => {
    const one = document.activeElement, style = getComputedStyle(one);
    const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
    return [one.id || one.value || one.textContent, seen];
}"""


def violations(visit: Visit) -> list[str]:
    """What axe finds, with the elements."""
    found: dict[str, Any] = Axe().run(visit.page, options=RULES).response
    return [
        f"{rule['id']}: {json.dumps([node['target'] for node in rule['nodes']])}"
        for rule in found["violations"]
    ]


def with_everything_open(page: Visit) -> Visit:
    """Formulas, both large kinds, an answer."""
    for kind in ("weights", "kv cache"):
        page.page.get_by_role("button", name=kind).click()
    page.page.check("#show-free")
    page.page.check("#show-other_processes")
    page.page.fill("#prompt", "a")
    page.page.click("#run")
    page.ended("done")
    return page


@pytest.mark.parametrize(("scheme", "viewport"), [("light", WIDE), ("dark", PHONE)])
def test_axe_finds_nothing(
    visit: Open, fake: PageServer, scheme: str, viewport: dict[str, int]
) -> None:
    page = with_everything_open(visit(fake.url, color_scheme=scheme, viewport=viewport))
    ground = page.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(251, 250, 247)", "dark": "rgb(22, 21, 18)"}[scheme]
    assert violations(page) == []


def test_axe_finds_nothing_when_things_are_wrong(visit: Open, fake: PageServer) -> None:
    fake.figures.devices = [device("cuda:0"), device("cuda:1")]
    fake.figures.devices[0]["total_bytes"] += 1
    page = visit(fake.url)
    fake.figures.values["quire_engine_up"] = 0
    page.connected("down")
    page.page.fill("#max-tokens", "100000")
    page.page.click("#run")
    page.ended("error")
    page.complaints.clear()  # the browser reports the 400
    assert violations(page) == []


def test_the_keyboard_alone_is_enough(visit: Open, fake: PageServer) -> None:
    page = visit(fake.url)
    path = []
    for _ in range(40):
        page.page.keyboard.press("Tab")
        name, seen = page.page.evaluate(FOCUSED)
        assert seen, f"{name} does not show that it has the focus"
        path.append(name.rstrip("+"))
        if name == "memory":
            break
    kinds = list(fake.figures.devices[0]["kinds"])
    expected = [
        *("show-other_processes", "show-free", "moment"),
        *(kind.replace("_", " ") for kind in kinds),
        *("completion", "prompt", "max-tokens", "temperature", "seed", "run", "output", "memory"),
    ]
    assert path == expected


def test_the_keyboard_runs_stops_and_keeps_the_focus(visit: Open, fake: PageServer) -> None:
    fake.engine.token_delay = 0.05
    page = visit(fake.url)
    page.page.focus("#prompt")
    page.page.keyboard.press("Control+Enter")
    expect(page.page.locator("#output")).not_to_be_empty()
    assert page.page.evaluate(FOCUSED)[0] == "prompt"
    page.page.focus("#stop")
    page.page.keyboard.press("Enter")
    page.ended("stopped")
    expect(page.page.locator("#run")).to_be_focused()
    page.page.keyboard.press("Enter")
    expect(page.page.locator("#outcome")).to_have_attribute("data-state", "busy")
    expect(page.page.locator("#stop")).to_be_focused()
    page.page.keyboard.press("Enter")
    page.ended("stopped")


def test_no_width_scrolls_sideways(visit: Open, fake: PageServer) -> None:
    fake.figures.devices = [device(weights=1023 * MIB, runtime=998 * MIB, free=987 * 1024 * MIB)]
    page = with_everything_open(visit(fake.url, viewport=PHONE))
    for width in (320, 360, 540, 768, 1087, 1280, 1920):
        page.page.set_viewport_size({"width": width, "height": 800})
        wide = page.page.evaluate(
            """() => [document.documentElement.scrollWidth,
                ...document.querySelectorAll("table, form, figure, .figure")].map(
                one => one.scrollWidth === undefined ? one : one.scrollWidth - one.clientWidth)"""
        )
        assert wide[0] <= width, width
        assert max(wide[1:]) <= 0, (width, wide)
        assert page.page.evaluate(APART) >= 4, width


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_jumps(visit: Open, fake: PageServer, viewport: dict[str, int]) -> None:
    fake.figures.notes = ["A note that is as long as those which the server gives, or nearly so."]
    page = visit(fake.url, viewport=viewport)
    fake.figures.values["quire_requests_running"] = 12345
    fake.figures.ttft = [0.15] * 1000
    expect(page.page.locator("#ttft-median")).to_have_text("150 ms")
    fake.figures.values["quire_engine_up"] = 0
    page.connected("down")
    assert page.page.evaluate(SHIFTS) < 0.01


def test_nothing_moves_for_who_wants_less_motion(visit: Open, fake: PageServer) -> None:
    page = visit(fake.url, reduced_motion="reduce")
    assert page.page.evaluate("() => document.getAnimations().length") == 0


def test_without_scripts_the_page_says_where_the_figures_are(visit: Open, fake: PageServer) -> None:
    page = visit(fake.url).page.context.browser
    assert page is not None
    context = page.new_context(java_script_enabled=False)
    try:
        tab = context.new_page()
        tab.goto(fake.url)
        notice = tab.locator(".notice")
        assert notice.is_visible()
        assert notice.get_by_role("link").first.get_attribute("href") == "memory?format=text"
    finally:
        context.close()

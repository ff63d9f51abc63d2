"""The page in a browser, over fakes: what it shows, and what it does when things go wrong."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Route, expect

from server.units import format_size
from tests.api.api_fakes import FakeEngine, make_state, saying
from tests.page.page_browser import Open, Visit
from tests.page.page_server import MIB, PageServer, device

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script> & "q" \U0001f9fe'
HIDE = """hidden => {
    Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
    document.dispatchEvent(new Event("visibilitychange"));
}"""
slow = pytest.mark.slow


def exact(visit: Visit, band: str) -> dict[str, str]:
    """A row of the table: exact bytes by column."""
    return {column: value for column, (value, _) in visit.ledger()[band].items()}


def test_sizes_read_as_in_the_server_s_tables(visit: Open, fake: PageServer) -> None:
    """Ties too, which sizes of whole blocks often are: 248119296 B are 236.625 MiB."""
    sizes = [0, 1023, 1024, 248119296, *(n * 2**17 for n in range(1, 400)), 5 * 2**28 + 2**25]
    sizes += [-size for size in sizes if size]
    page = visit(fake.url)
    script = "async ([url, sizes]) => sizes.map((await import(url)).bytes)"
    scripts = page.page.eval_on_selector_all("script[src]", "all => all.map(one => one.src)")
    found = page.page.evaluate(script, [scripts[0].rsplit("/", 1)[0] + "/format.js", sizes])
    assert found == [format_size(size) for size in sizes]


def test_the_page_shows_the_figures_and_streams_text_as_text(visit: Open, fake: PageServer) -> None:
    fake.engine.script = saying(HOSTILE)
    fake.engine.tokens_per_event = 1000  # all of it in one piece, which a parser would understand
    page = visit(fake.url)
    line = fake.figures.devices[0]["kinds"]["weights"]
    assert exact(page, "weights") == {
        "now": str(line["bytes"]),
        "peak": str(line["peak_bytes"]),
        "planned": str(line["planned_bytes"]),
    }
    assert page.text("#fact-model") == "tiny"
    assert page.text("#fact-length") == "256 tokens"
    assert page.text("#fact-version") == "1.2.3"
    page.page.fill("#prompt", "a")
    page.page.click("#run")
    page.ended("done")
    assert page.text("#output") == HOSTILE
    assert page.page.locator("#output *").count() == 0
    assert page.page.title() == "Quire: tiny"
    assert "first after" in page.text("#outcome")
    tokens = len(HOSTILE.encode()) + 1
    assert f"1 + {tokens} tokens" in page.text("#outcome")
    assert page.text("#outcome").endswith("ended by stop")


def height(outline: str) -> float:
    """Of a band at the newest moment, in pixels: its way there ends above, its way back begins
    below."""
    points = [point.split() for point in re.split("[ML]", outline.rstrip("Z")) if point]
    upper, lower = points[: len(points) // 2], points[len(points) // 2 :]
    return float(lower[0][1]) - float(upper[-1][1])


@slow
def test_every_kind_is_in_the_table_and_the_graph(visit: Open, fake: PageServer) -> None:
    fake.figures.devices = [device(unaccounted=-3 * MIB)]
    fake.figures.notes = ["A note.", "Another."]
    page = visit(fake.url)
    shown, kinds = page.ledger(), fake.figures.devices[0]["kinds"]
    parts = {f"kv_cache-{part['part']}": part["bytes"] for part in kinds["kv_cache"]["parts"]}
    assert set(shown) == set(kinds) | set(parts)
    for kind, line in kinds.items():
        planned = line["planned_bytes"]
        expected = (line["bytes"], line["peak_bytes"], "" if planned is None else planned)
        assert tuple(exact(page, kind).values()) == tuple(map(str, expected)), kind
    for part, count in parts.items():
        assert exact(page, part) == {"now": str(count)}
    assert shown["unaccounted"]["now"][1] == "-3.00 MiB"
    assert page.text("#ledger-check") == "the sum of all kinds"
    assert page.text("#memory-notes") == "A note. Another."
    assert page.page.locator("tr[data-band=runtime] abbr").is_visible()
    assert not page.page.locator("tr[data-band=weights] abbr").is_visible()
    drawn = page.areas()
    assert set(drawn) == (set(kinds) | set(parts)) - {"kv_cache", "free", "other_processes"}
    held = {kind: max(0, line["bytes"]) for kind, line in kinds.items()} | parts
    pixels = height(drawn["kv_cache-free"]) / held["kv_cache-free"]
    for band, outline in drawn.items():
        assert height(outline) == pytest.approx(held[band] * pixels, abs=0.5), band
    page.page.check("#show-free")
    assert "free" in page.areas()
    page.page.uncheck("#show-free")
    assert "free" not in page.areas()


@slow
def test_a_kind_opens_its_formula_and_its_parts(visit: Open, fake: PageServer) -> None:
    page = visit(fake.url)
    button = page.page.get_by_role("button", name="weights")
    expect(button).to_have_attribute("aria-expanded", "false")
    button.click()
    expect(button).to_have_attribute("aria-expanded", "true")
    assert page.text("#detail-weights p") == "how weights comes about"
    assert page.text("#detail-weights dl") == "embedding (bf16)4.00 KiB"
    button.click()
    expect(page.page.locator("#detail-weights")).to_be_hidden()


@slow
def test_books_that_do_not_balance_are_called_out(visit: Open, fake: PageServer) -> None:
    fake.figures.devices[0]["total_bytes"] += 5 * MIB
    page = visit(fake.url)
    assert page.text("#ledger-check") == "the kinds are off by 5.00 MiB"


@slow
def test_several_devices_can_be_chosen_between(visit: Open, fake: PageServer) -> None:
    page = visit(fake.url)
    assert page.page.locator("#device-choice").is_hidden()
    fake.figures.devices = [device("cuda:0"), device("cuda:1", weights=77 * MIB)]
    expect(page.page.locator("#device-choice")).to_be_visible()
    page.page.select_option("#device", "cuda:1")
    assert exact(page, "weights")["now"] == str(77 * MIB)
    assert page.text("#memory-line").startswith("cuda:1: ")


@slow
def test_an_earlier_moment_can_be_looked_at(visit: Open, fake: PageServer) -> None:
    first = fake.figures.devices[0]["kinds"]["weights"]["bytes"]
    page = visit(fake.url)
    fake.figures.devices = [device(weights=50 * MIB)]
    weights = page.page.locator("tr[data-band=weights] data[data-column=now]")
    expect(weights).to_have_attribute("value", str(50 * MIB))
    page.page.focus("#moment")
    page.page.keyboard.press("Home")
    expect(weights).to_have_attribute("value", str(first))
    assert page.text("#ledger-now") == page.text("#moment-text") != "now"
    assert page.page.get_attribute("#moment", "aria-valuetext") == page.text("#moment-text")
    page.page.click("#moment-live")
    expect(weights).to_have_attribute("value", str(50 * MIB))
    assert page.text("#ledger-now") == "now"


@slow
def test_serving_figures_are_those_of_the_metrics(visit: Open, fake: PageServer) -> None:
    figures = fake.figures
    figures.ttft = [0.35] * 50  # before the page was opened: not in its minute
    page = visit(fake.url)
    shown = {
        "#requests-running": "3", "#requests-waiting": "2", "#kv-capacity": "4,096",
        "#kv-filled": "400", "#kv-reserved": "112", "#kv-free": "3,584", "#kv-cached": "1,024",
        "#ttft-median": "–", "#rate-decode": "–",
    }  # fmt: skip
    assert {selector: page.text(selector) for selector in shown} == shown
    # Ten observations, five to a bucket: the median is the first bucket's end, p95 is 9/10 up the
    # second. Beyond the last bound nothing more is known.
    figures.ttft = [*figures.ttft, *([0.05] * 5), *([0.15] * 5)]
    figures.itl = [0.5] * 7
    expect(page.page.locator("#ttft-median")).to_have_text("100 ms")
    assert page.text("#ttft-p95") == "190 ms"
    assert page.text("#ttft-window").startswith("10 requests in ")
    assert page.text("#itl-median") == "> 400 ms"
    figures.values['quire_engine_step_tokens_total{phase="decode"}'] += 100_000
    expect(page.page.locator("#rate-decode")).not_to_have_text("0")
    # A new server counts from nothing: what the old one had counted is no difference to it.
    figures.ttft, figures.itl = [0.3], []
    expect(page.page.locator("#ttft-median")).to_have_text("–")
    figures.ttft = [0.3, 0.3]
    expect(page.page.locator("#ttft-window")).to_contain_text("1 request in ")


@slow
def test_a_model_s_name_is_text_however_long(visit: Open) -> None:
    name = HOSTILE + "long" * 60
    model = replace(make_state(FakeEngine()).model, name=name)
    with PageServer(model=model) as server:
        page = visit(server.url, viewport={"width": 320, "height": 700})
        expect(page.page.locator("#fact-model")).to_have_text(name)
        assert page.page.title() == f"Quire: {name}"
        assert page.page.locator("header img").count() == 0
        assert page.page.evaluate("() => document.documentElement.scrollWidth") == 320


@slow
@pytest.mark.parametrize("asking", [False, True])
def test_a_hidden_page_asks_seldom_and_one_in_view_at_once(
    visit: Open, fake: PageServer, asking: bool
) -> None:
    page = visit(fake.url)
    held: list[Route] = []
    if asking:  # hidden while an answer is on its way
        page.page.route("**/memory", lambda route: held.append(route))
        while not held:
            page.page.wait_for_timeout(20)
    page.page.evaluate(HIDE, True)
    for one in held:
        one.continue_()
    page.page.unroute_all()
    page.page.wait_for_timeout(300)
    before = fake.figures.polls
    page.page.wait_for_timeout(2000)
    assert fake.figures.polls == before
    page.page.evaluate(HIDE, False)
    page.page.wait_for_timeout(500)
    assert fake.figures.polls > before


@slow
def test_an_answer_can_be_stopped_and_the_next_one_run(visit: Open, fake: PageServer) -> None:
    fake.engine.script = saying("a" * 200)
    fake.engine.token_delay = 0.05
    page = visit(fake.url)
    page.page.fill("#max-tokens", "190")
    page.page.click("#run")
    expect(page.page.locator("#run")).to_be_disabled()
    expect(page.page.locator("#output")).to_contain_text("aaa")
    expect(page.page.locator("#output")).to_have_attribute("aria-busy", "true")
    page.page.click("#stop")
    page.ended("stopped")
    assert page.text("#outcome").startswith("Stopped.")
    assert 0 < len(page.text("#output")) < 190
    expect(page.page.locator("#output")).to_have_attribute("aria-busy", "false")
    assert len(fake.engine.aborted) == 1
    fake.engine.token_delay = 0
    page.page.fill("#max-tokens", "5")
    page.page.click("#run")
    page.ended("done")
    assert page.text("#output") == "aaaaa"


@slow
def test_errors_are_shown_as_the_api_words_them(visit: Open, fake: PageServer) -> None:
    page = visit(fake.url)
    page.page.fill("#temperature", "99")
    page.page.click("#run")
    page.ended("error")
    said = page.text("#outcome")
    assert "temperature" in said and "99" in said and "invalid_value" in said
    page.complaints = [one for one in page.complaints if "400 (Bad Request)" not in one]
    page.page.fill("#temperature", "")
    fake.engine.dies_after = 3
    page.page.click("#run")
    page.ended("error")
    assert page.text("#outcome").startswith("The engine died. (")
    assert len(page.text("#output")) == 3


@slow
def test_empty_fields_are_the_server_s_to_fill(visit: Open, fake: PageServer) -> None:
    page = visit(fake.url)
    for field in ("#max-tokens", "#temperature", "#seed"):
        page.page.fill(field, "")
    with page.page.expect_request("**/v1/completions") as sent:
        page.page.click("#run")
    assert set(sent.value.post_data_json) == {"prompt", "stream", "stream_options"}
    page.ended("done")


@slow
def test_a_model_that_chats_can_be_chatted_with(visit: Open, fake: PageServer) -> None:
    fake.engine.script = saying("Good day.")
    page = visit(fake.url)
    page.page.check("input[value=chat]")
    assert page.text("#playground-route") == "POST /v1/chat/completions"
    page.page.fill("#prompt", "Hello")
    with page.page.expect_request("**/v1/chat/completions") as sent:
        page.page.click("#run")
    assert sent.value.post_data_json["messages"] == [{"role": "user", "content": "Hello"}]
    page.ended("done")
    assert page.text("#output") == "Good day."


@slow
def test_a_model_without_a_template_is_offered_no_chat(visit: Open) -> None:
    with PageServer(chat_template=None) as server:
        page = visit(server.url)
        expect(page.page.locator("#fact-model")).to_have_text("tiny")
        assert page.page.locator("#mode").is_hidden()

"""The page's route: types, caching, policy, methods; and that its files belong together."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.app import create_app
from server.api.state import ApiState, HttpLimits
from server.api.ui import route
from tests.api.api_fakes import RecordingMetrics, make_state
from tests.page.page_markup import read

PAGE = Path(route.__file__).parent
FILES = {path.name for path in PAGE.iterdir() if path.suffix in (".html", ".css", ".js")}
TYPES = {".css": "text/css", ".js": "text/javascript", ".html": "text/html"}
DOCUMENTS = {"index.html": "/", "docs.html": "/docs"}
PATHS = {DOCUMENTS.get(name, f"/page/{name}"): name for name in FILES}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}


def ask(method: str, path: str, state: ApiState | None = None, **more: Any) -> httpx.Response:
    async def story() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(state or make_state()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **more)

    return asyncio.run(story())


@pytest.mark.parametrize("path", sorted(PATHS))
def test_every_file_is_served_as_it_is(path: str) -> None:
    answer = ask("GET", path)
    assert answer.status_code == 200
    assert answer.content == (PAGE / PATHS[path]).read_bytes()
    assert answer.headers["content-type"] == f"{TYPES[Path(PATHS[path]).suffix]}; charset=utf-8"
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/page/page.css"])
def test_the_headers_forbid_what_the_page_does_not_need(path: str) -> None:
    headers = ask("GET", path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-request-id"]


def test_a_browser_asks_each_time_and_gets_a_file_once() -> None:
    first = ask("GET", "/")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', etag)
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = ask("GET", "/", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b""), known
        assert again.headers["etag"] == etag
        assert "content-security-policy" in again.headers
    assert ask("GET", "/", headers={"if-none-match": '"other"'}).status_code == 200
    assert ask("GET", "/page/page.js").headers["etag"] != etag


def test_head_is_get_without_the_body() -> None:
    whole, head = ask("GET", "/"), ask("HEAD", "/")
    assert head.status_code == 200
    changing = "x-request-id"
    assert {**head.headers, changing: ""} == {**whole.headers, changing: ""}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/page/page.css"])
def test_other_methods_are_refused_in_the_api_s_shape(method: str, path: str) -> None:
    answer = ask(method, path)
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "path",
    [
        *("/page", "/page/", "/page/index.html", "/page/route.py", "/page/__init__.py"),
        *("/page/..%2froute.py", "/page/%2e%2e/app.py", "/page/PAGE.JS", "/page.js"),
    ],
)
def test_nothing_else_is_served(path: str) -> None:
    answer = ask("GET", path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_the_page_is_counted_as_http_and_as_no_request() -> None:
    metrics = RecordingMetrics()
    state = make_state(metrics=metrics)
    for path in ("/", "/page/page.js", "/page/nothing.js"):
        ask("GET", path, state)
    assert metrics.records == []
    assert metrics.http == [
        ("/", "GET", 200),
        ("/page/{file}", "GET", 200),
        ("unmatched", "GET", 404),
    ]


def test_the_limits_hold_for_the_page_too() -> None:
    state = make_state(limits=HttpLimits(max_header_bytes=2000, max_body_bytes=100))
    assert ask("GET", "/", state, headers={"x": "y" * 2000}).status_code in (400, 431)
    assert ask("GET", "/", state, content=b"y" * 200).status_code == 413


def test_the_model_card_says_whether_the_model_chats() -> None:
    def chats(state: ApiState) -> object:
        return ask("GET", "/v1/models", state).json()["data"][0]["chat"]

    assert chats(make_state()) is True
    assert chats(make_state(chat_template=None)) is False


@pytest.mark.parametrize("document", DOCUMENTS)
def test_nothing_is_inline_and_nothing_comes_from_elsewhere(document: str) -> None:
    text = (PAGE / document).read_text()
    elements = read(text).elements
    assert {"script", "link"} <= {element.name for element in elements}
    for element in elements:
        assert element.name != "style"
        handlers = {key for key in element.attributes if key.startswith("on")}
        assert not handlers | ({"style"} & element.attributes.keys()), element
        if element.name == "script":
            assert element.attributes["src"]
            assert not element.text.strip()
        for key in ("src", "href", "action"):
            target = element.attributes.get(key, "")
            assert "//" not in target or target.startswith("data:image/svg+xml,"), element
            assert not target.startswith("/"), f"{target} breaks behind a proxy's prefix"
    for name in FILES - DOCUMENTS.keys():
        source = (PAGE / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|@import|url\(\s*[^\"#]|\beval\(|new Function", source), name


def test_what_the_model_writes_can_become_no_markup() -> None:
    for name in FILES:
        source = (PAGE / name).read_text()
        found = re.findall(r"\w*(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write)", source)
        assert not found, name


def test_every_file_is_reached_from_the_page() -> None:
    reached, ahead = set[str](), list(DOCUMENTS)
    while ahead:
        name = ahead.pop()
        reached.add(name)
        source = (PAGE / name).read_text()
        found = re.findall(r'(?:"page/|from "\./)([\w.]+)"', source)
        ahead += [one for one in found if one not in reached]
    assert reached == FILES


def test_every_element_that_a_module_asks_for_is_there() -> None:
    markup = read((PAGE / "index.html").read_text())
    ids = [element.id for element in markup.elements if element.id]
    assert len(ids) == len(set(ids))
    for name in FILES:
        asked = re.findall(r'\bby\("([\w-]+)"\)', (PAGE / name).read_text())
        assert set(asked) <= set(ids), name


def test_the_document_has_landmarks_headings_and_names() -> None:
    markup = read((PAGE / "index.html").read_text())
    (html,) = markup.named("html")
    assert html.attributes["lang"] == "en"
    for landmark in ("header", "main", "footer", "h1", "title"):
        assert len(markup.named(landmark)) == 1, landmark
    ids = {element.id for element in markup.elements}
    for section in markup.named("section"):
        assert section.attributes["aria-labelledby"] in ids
    labelled = {label.attributes.get("for") for label in markup.named("label")}
    for control in markup.named("input", "textarea", "select", "button"):
        within = any(one.name == "label" and one.text.strip() for one in control.ancestors)
        own = control.name == "button" and control.text.strip()
        assert within or control.id in labelled or own, control
    for fieldset in markup.named("fieldset"):
        legends = [one for one in markup.named("legend") if fieldset in one.ancestors]
        assert len(legends) == 1

"""/docs in a browser: every operation and field of the document, and nothing from another host."""

from __future__ import annotations

import httpx
from playwright.sync_api import Browser, expect

from tests.page.page_server import PageServer

PATIENCE_MS = 60_000


def test_the_docs_show_the_document_and_ask_nobody_else(
    chromium: Browser, fake: PageServer
) -> None:
    document = httpx.get(f"{fake.url}openapi.json", timeout=60).json()
    page = chromium.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(f"{fake.url}docs")
    expect(page.locator("#state")).to_have_text("Quire 1.2.3", timeout=PATIENCE_MS)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            title = page.locator(f"#{operation['operationId']}")
            expect(title).to_have_text(f"{method.upper()} {path}")
    shown = page.locator("#document").text_content() or ""
    for name in document["components"]["schemas"]["CompletionRequest"]["properties"]:
        assert name in shown
    assert "integer (from 0 to 256)" in shown
    assert {url for url in asked if not url.startswith((fake.url, "data:"))} == set()
    assert not complaints
    page.close()

"""The page at ``/``: files that come with the package, read once, served with strict headers.

    GET /             index.html
    GET /docs         docs.html: the API, from /openapi.json
    GET /page/NAME    styles and modules

The page talks to the other routes only, from the visitor's browser; nothing here knows the engine.
Every file is revalidated by its ETag, so that a page never runs with another version's modules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

HOME = "/"
DOCUMENTS = {"index.html": HOME, "docs.html": "/docs"}
FOLDER = "/page/"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is sent."""

    content: bytes
    media_type: str
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.content).hexdigest()[:32]
        object.__setattr__(self, "etag", f'"{digest}"')


def read_page() -> dict[str, PageFile]:
    """Every file of the page by its path on the server.

    Raises:
        FileNotFoundError: the package was built without them.
    """
    found: dict[str, PageFile] = {}
    for item in resources.files(__package__).iterdir():
        media_type = _TYPES.get(item.name.rpartition(".")[2])
        if media_type is not None:
            path = DOCUMENTS.get(item.name, FOLDER + item.name)
            found[path] = PageFile(item.read_bytes(), media_type)
    if HOME not in found:
        raise FileNotFoundError("The package server.api.ui has no index.html. Install it again.")
    return found


class PageRoutes:
    """One handler for all paths of the page."""

    def __init__(self) -> None:
        self._files = read_page()

    @property
    def templates(self) -> dict[str, str]:
        """The name that the HTTP metrics give each path."""
        return {
            path: FOLDER + "{file}" if path.startswith(FOLDER) else path for path in self._files
        }

    async def file(self, request: Request) -> Response:
        """The file at the request's path, or 304 where the browser has it."""
        file = self._files[request.scope["path"]]
        headers = {**HEADERS, "etag": file.etag}
        if _has(request.headers.get("if-none-match", ""), file.etag):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)


def _has(if_none_match: str, etag: str) -> bool:
    """The weak comparison of RFC 9110: a proxy that compresses marks our tag as weak."""
    tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return any(tag in (etag, "*") for tag in tags)

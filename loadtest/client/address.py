"""--base-url in words that a socket understands, and the model that is served there."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from loadtest.client.connection import Address, HttpClient, request_head
from loadtest.client.exchange import Exchange
from loadtest.errors import ScenarioError, ServerUnreachable


def parse_base_url(text: str) -> Address:
    """``http://host:port`` with or without a path; a last /v1 is ours to add and is taken off.

    Raises ScenarioError for anything else.
    """
    given = f"--base-url {text}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ScenarioError(f"{given}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ScenarioError(f"{given}: give http://HOST:PORT or https://HOST")
    if parts.query or parts.fragment or parts.username:
        raise ScenarioError(f"{given}: no user, ? or # belongs there; a key goes by --api-key-file")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    secure = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if secure else 80), secure, prefix)


async def find_model(address: Address, headers: dict[str, str], timeout_s: float = 10.0) -> str:
    """The first model of /v1/models.

    Raises ServerUnreachable where nothing answers, or not as such an API does.
    """
    client = HttpClient(address, timeout_s)
    exchange = Exchange(request_head(address, "GET", "/v1/models", 0, headers), b"")
    await client.send(exchange)
    await client.close()
    where = f"{address.authority}{address.prefix}"
    if exchange.failure is not None:
        raise ServerUnreachable(f"no server at {where}: {exchange.detail}")
    if exchange.status != 200:
        raise ServerUnreachable(
            f"{where}/v1/models answers {exchange.status}: "
            f"{exchange.body[:200].decode('utf-8', 'replace')}"
        )
    try:
        return str(json.loads(exchange.body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise ServerUnreachable(
            f"{where}/v1/models is not a list of models: is the base URL right?"
        ) from None


async def is_ready(address: Address, headers: dict[str, str], timeout_s: float) -> bool:
    """Whether neither /health nor /ready, where a server has them, says 503: it still loads."""
    client = HttpClient(address, timeout_s)
    answers = []
    for path in ("/health", "/ready"):
        exchange = Exchange(request_head(address, "GET", path, 0, headers), b"")
        await client.send(exchange)
        answers.append(exchange.failure is None and exchange.status != 503)
    await client.close()
    return all(answers)

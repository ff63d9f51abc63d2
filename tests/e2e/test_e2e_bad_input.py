"""The table of bad requests, over real sockets, beside a canary."""

from __future__ import annotations

import httpx

from tests.api.bad_requests import ServerFacts, cases
from tests.e2e.server_process import (
    MAX_BODY_BYTES,
    MAX_MODEL_LEN,
    VOCAB_SIZE,
    ServerProcess,
    wait_until,
)

CANARY = {"prompt": "canary", "max_tokens": 12, "temperature": 0}


def test_every_bad_request_is_refused_and_the_canary_sings(server: ServerProcess) -> None:
    facts = ServerFacts(server.model, VOCAB_SIZE, MAX_MODEL_LEN, MAX_BODY_BYTES)
    expected = server.post(**CANARY).json()["choices"][0]["text"]
    table = cases(facts)
    assert len(table) >= 150
    with httpx.Client(base_url=server.base_url, timeout=60) as client:
        for index, case in enumerate(table):
            response = client.request(
                case.method, case.path, content=case.body, headers=case.headers
            )
            assert response.status_code == case.status, (case.name, response.text)
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}, case.name
            assert case.code in (None, error["code"]), (case.name, error)
            if index % 40 == 0:
                sung = server.post(**CANARY).json()["choices"][0]["text"]
                assert sung == expected, case.name
    wait_until(server.is_idle, 60, "nothing held")
    assert server.metric("quire_requests_total", outcome="error") == 0

"""/openapi.json is true of the server: what it allows is served, what it forbids is refused, and
answers are what it says. schemathesis makes the requests, over a real socket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from server.api.routes.openapi import decimals_up_to
from server.api.state import ApiState, ModelCard
from tests.api.api_client import with_client
from tests.api.api_fakes import FakeEngine, make_state
from tests.api.asks_for_nothing import CHAT, COMPLETIONS, NOTHING, REQUIRED
from tests.api.served_app import served

load_all_checks()
ALL_CHECKS = CHECKS.get_all()
POSITIVE = next(check for check in ALL_CHECKS if check.__name__ == "positive_data_acceptance")
# What JSON Schema cannot say: the document says it in words. (code, the field that an error names)
RULES_OF_SEVERAL_FIELDS = {
    ("context_length_exceeded", "prompt|messages"),
    ("invalid_value", "stream_options|min_tokens|max_completion_tokens|top_logprobs|n"),
    ("invalid_value", r"logit_bias"),  # an id spelled twice
    ("missing_required_parameter", r"messages\[\d+\]\.content"),
    ("invalid_value", "format"),  # of /memory, beside request_id
}
A_WHOLE_FLOAT = re.compile(r"not -?\d+(\.0|(\.\d+)?e\+\d+)\.$")  # an integer, for JSON Schema


OPERATIONS = [
    ("/v1/completions", "post", 60),  # and the number of requests of a kind
    ("/v1/chat/completions", "post", 60),
    ("/v1/models", "get", 2),
    ("/v1/models/{model}", "get", 10),
    ("/health", "get", 2),
    ("/ready", "get", 2),
    ("/version", "get", 2),
    ("/metrics", "get", 2),
    ("/memory", "get", 20),
]


@pytest.fixture(scope="module")
def state() -> ApiState:
    card = ModelCard("tiny", 1, vocab_size=300, max_model_len=64, kv_capacity_tokens=4096)
    return make_state(FakeEngine(), model=card, memory=lambda: TREE)


TREE = {"devices": [{"device": "cpu", "total_bytes": 1}], "host": {}, "notes": []}


@pytest.fixture(scope="module")
def address(state: ApiState) -> Iterator[str]:
    with served(state) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def api_schema(address: str) -> Any:
    return schemathesis.openapi.from_url(f"{address}/openapi.json", timeout=120)


@pytest.mark.parametrize(("path", "method", "examples"), OPERATIONS)
def test_what_the_document_allows_is_served(
    api_schema: Any, path: str, method: str, examples: int
) -> None:
    hold(api_schema[path][method], examples, GenerationMode.POSITIVE)


@pytest.mark.parametrize(
    ("path", "method", "examples"),
    [one for one in OPERATIONS if one[1] == "post" or one[0] == "/memory"],
)
def test_what_the_document_forbids_is_refused(
    api_schema: Any, path: str, method: str, examples: int
) -> None:
    hold(api_schema[path][method], examples, GenerationMode.NEGATIVE)


def hold(operation: Any, examples: int, mode: GenerationMode) -> None:
    """Every check of schemathesis, and no server error."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: schemathesis.Case) -> None:
        response = case.call(timeout=60)
        excluded = [POSITIVE] if is_rule_of_several_fields(response) else []
        case.validate_response(response, checks=ALL_CHECKS, excluded_checks=excluded)
        assert response.status_code < 500

    holds()


def test_every_operation_of_the_document_is_tried(api_schema: Any) -> None:
    described = {
        (path, method)
        for path, methods in api_schema.raw_schema["paths"].items()
        for method in methods
    }
    assert described == {(path, method) for path, method, _ in OPERATIONS}


def is_rule_of_several_fields(response: Any) -> bool:
    if response.status_code != 400:
        return False
    error = response.json()["error"]
    if error["code"] == "invalid_type" and A_WHOLE_FLOAT.search(error["message"]):
        return True
    return any(
        error["code"] == code and re.fullmatch(param, error["param"] or "")
        for code, param in RULES_OF_SEVERAL_FIELDS
    )


def document(state: ApiState) -> Any:
    return with_client(state, lambda client: client.get("/openapi.json")).json()


def test_bounds_are_those_of_the_model_that_is_served() -> None:
    card = ModelCard("named", 1, vocab_size=1000, max_model_len=77, kv_capacity_tokens=4096)
    schemas = document(make_state(model=card))["components"]["schemas"]
    fields = schemas["CompletionRequest"]["properties"]
    assert fields["max_tokens"]["anyOf"][0]["maximum"] == 77
    assert fields["model"]["anyOf"][0]["const"] == "named"
    assert fields["stop_token_ids"]["anyOf"][0]["items"]["maximum"] == 999
    keys = re.compile(fields["logit_bias"]["anyOf"][0]["propertyNames"]["pattern"])
    assert [id for id in range(1100) if keys.search(str(id))] == list(range(1000))
    assert keys.search("0007") and not keys.search("7 ")
    assert '"x-' not in json.dumps(schemas)


def test_every_field_that_a_request_may_have_is_described() -> None:
    schemas = document(make_state())["components"]["schemas"]
    for route, name in ((COMPLETIONS, "CompletionRequest"), (CHAT, "ChatRequest")):
        described = schemas[name]["properties"]
        assert set(NOTHING[route]) <= set(described)
        for field, values in NOTHING[route].items():
            if field != REQUIRED[route]:
                check = jsonschema.Draft202012Validator(
                    {**described[field], "components": {"schemas": schemas}}
                )
                assert all(check.is_valid(value) for value in (*values, None)), field


def test_the_examples_of_requests_are_served() -> None:
    schemas = document(make_state())["components"]["schemas"]

    async def story(client: httpx.AsyncClient) -> None:
        for route, name in ((COMPLETIONS, "CompletionRequest"), (CHAT, "ChatRequest")):
            assert schemas[name]["examples"]
            for body in schemas[name]["examples"]:
                response = await client.post(route, json=body)
                assert response.status_code == 200, response.text

    with_client(make_state(), story)


@pytest.mark.parametrize("most", [0, 5, 9, 10, 19, 99, 100, 101, 299, 1000, 31_999])
def test_decimals_up_to_a_bound(most: int) -> None:
    pattern = re.compile(f"^{decimals_up_to(most)}$")
    tried = [*range(most + 200), most * 10, most * 10 + 9, 10**9]
    assert all(bool(pattern.match(str(number))) == (number <= most) for number in tried)

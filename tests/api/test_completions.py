"""/v1/completions: the shape of its answers, and that they say what the engine did."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from server.api.app import create_app
from server.api.sampling import generation_defaults
from server.api.state import ApiState, GenerationDefaults
from server.engine.request import SamplingParams
from server.errors import ErrorCode, QuireError
from server.metrics.stats import Outcome
from tests.api.api_client import chunks, client_of, openai_client, with_client
from tests.api.api_fakes import EOS, FakeEngine, FakeHealth, make_state, saying

BODY: dict[str, Any] = {"model": "tiny", "prompt": "深度", "max_tokens": 4, "temperature": 0}


def post(state: ApiState, **changes: Any) -> httpx.Response:
    body = {**BODY, **changes}
    return with_client(state, lambda client: client.post("/v1/completions", json=body))


def test_the_user_of_a_request_reaches_the_engine() -> None:
    engine = FakeEngine()
    post(make_state(engine), user="alice")
    post(make_state(engine))
    assert [request.tenant for request in engine.seen] == ["alice", ""]


def test_the_answer_is_complete() -> None:
    engine = FakeEngine(saying("学习是"), cached_tokens=2, queue_seconds=0.125)
    state = make_state(engine)
    answer = post(state, max_tokens=20).json()
    id = answer.pop("id")
    assert id.startswith("cmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "text_completion",
        "model": "tiny",
        "system_fingerprint": "quire",
        "choices": [
            {
                "index": 0,
                "text": "学习是",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": 10,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }
    (record,) = state.metrics.records  # type: ignore[attr-defined]
    assert (record.outcome, record.status, record.completion_tokens) == (Outcome.STOP, 200, 10)
    assert (record.prompt_tokens, record.cached_tokens) == (6, 2)
    assert record.ttft_s is not None
    assert record.queue_s == 0.125  # the engine's figure: it does not hold the prompt's own step
    assert not engine.aborted


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("stop", [None, "习", "学习", "是!", EMOJI := "👩‍👩‍👧"])
def test_streamed_is_the_same_as_whole(size: int, stop: str | None) -> None:
    script = saying(f"深度学习是 {EMOJI}é!")
    options = {"max_tokens": 60, "stop": stop, "logprobs": 2}
    whole = post(make_state(FakeEngine(script, tokens_per_event=size)), **options).json()
    engine = FakeEngine(script, tokens_per_event=size)
    streamed = chunks(
        post(make_state(engine), stream=True, stream_options={"include_usage": True}, **options)
    )
    usage = streamed.pop()
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in streamed)
    choices = [chunk["choices"][0] for chunk in streamed]
    (expected,) = whole["choices"]
    assert "".join(choice["text"] for choice in choices) == expected["text"]
    assert choices[-1]["finish_reason"] == expected["finish_reason"]
    assert (
        choices[-1]["stop_reason"] == expected["stop_reason"] == (stop if stop != "是!" else None)
    )
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [item for choice in choices for item in choice["logprobs"][name]]
        assert joined == expected["logprobs"][name]
    assert not engine.open
    assert not engine.aborted


def test_several_prompts_and_choices_are_indexed_prompt_by_prompt() -> None:
    engine = FakeEngine()
    choices = post(make_state(engine), prompt=["a", "b"], n=2).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    alone = [post(make_state(), prompt=prompt, n=2).json()["choices"] for prompt in ("a", "b")]
    assert [choice["text"] for choice in choices] == [
        choice["text"] for answer in alone for choice in answer
    ]
    streamed = chunks(post(make_state(), prompt=["a", "b"], n=2, stream=True))
    for choice in choices:
        mine = [c["choices"][0] for c in streamed if c["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
    assert len(engine.seen) == 2
    assert len({request.request_id for request in engine.seen}) == 2


def test_echo_with_logprobs_scores_the_prompt() -> None:
    (choice,) = post(make_state(), prompt="ab", echo=True, logprobs=2, max_tokens=0).json()[
        "choices"
    ]
    assert choice["text"] == "ab"
    assert choice["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [None, pytest.approx(-0.98)],
        "top_logprobs": [None, {"b": pytest.approx(-0.98), "c": pytest.approx(-0.98)}],
        "text_offset": [0, 1],
    }


def test_every_field_reaches_the_engine() -> None:
    engine = FakeEngine()
    as_sent = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
    }
    as_sent |= {"min_tokens": 2, "max_tokens": 5, "ignore_eos": True, "logprobs": 3}
    penalties = {"presence_penalty": 1, "frequency_penalty": -1}
    changed = {"seed": -1, "logit_bias": {"5": 2, "6": -1}, "stop_token_ids": [EOS], **penalties}
    of_request = {"n": 2, "priority": -3, "cache_salt": "s", "user": "me"}
    post(make_state(engine), **as_sent, **changed, **of_request)
    (request,) = engine.seen
    assert (request.n, request.priority, request.cache_salt) == (2, -3, "s")
    assert request.prompt_token_ids == tuple("深度".encode())
    assert request.sampling == SamplingParams(
        **as_sent,
        **penalties,
        seed=2**63 - 1,
        logit_bias=((5, 2.0), (6, -1.0)),
        stop_token_ids=(EOS,),
    )


def test_null_is_as_good_as_absent() -> None:
    engine = FakeEngine()
    names = ("max_tokens", "n", "temperature", "top_p", "stop", "seed", "logprobs", "stream")
    response = post(make_state(engine), **dict.fromkeys(names), stream_options=None, best_of=None)
    assert response.status_code == 200
    assert engine.seen[0].sampling.max_tokens == 16
    assert engine.seen[0].sampling.temperature == 1.0


def test_absent_sampling_fields_take_the_models_defaults() -> None:
    state = make_state()
    config = {"temperature": 0.25, "top_k": 0, "top_p": 0.5, "do_sample": True, "eos_token_id": 1}
    defaults = generation_defaults(config, state.model)
    assert defaults == GenerationDefaults(temperature=0.25, top_p=0.5)
    engine = FakeEngine()
    post(make_state(engine, defaults=defaults), temperature=None, top_p=1)
    assert (engine.seen[0].sampling.temperature, engine.seen[0].sampling.top_p) == (0.25, 1.0)
    with pytest.raises(ValueError, match=r"generation_config\.json: top_p must be"):
        generation_defaults({"top_p": 7}, state.model)


def test_a_seed_is_drawn_where_none_is_given() -> None:
    engine = FakeEngine()
    state = make_state(engine)
    seeds = [post(state) and engine.seen[-1].sampling.seed for _ in range(3)]
    assert len(set(seeds)) == 3


def test_a_full_queue_is_429_before_any_header_of_a_stream() -> None:
    engine = FakeEngine(max_open=0)
    state = make_state(engine)
    for stream in (False, True):
        response = post(state, stream=stream)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "3"
        assert response.json()["error"]["code"] == "queue_full"
    outcomes = [record.outcome for record in state.metrics.records]  # type: ignore[attr-defined]
    assert outcomes == [Outcome.OVERLOADED] * 2


@pytest.mark.parametrize(
    ("health", "code"),
    [
        (FakeHealth(draining=True), "shutting_down"),
        (FakeHealth(alive=False, ready=False), "engine_unavailable"),
    ],
)
def test_a_server_that_cannot_serve_says_why(health: FakeHealth, code: str) -> None:
    response = post(make_state(health=health))
    assert response.status_code == 503
    assert response.json()["error"]["code"] == code
    assert "retry-after" in response.headers


def test_an_engine_that_dies_ends_a_stream_with_an_error_event() -> None:
    state = make_state(FakeEngine(dies_after=2))
    response = post(state, stream=True, max_tokens=9)
    *_, last, end = response.text.split("\n\n")
    assert (response.status_code, end) == (200, "")
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.split("data: ")[1])["error"]["code"] == "engine_unavailable"
    assert "[DONE]" not in response.text
    assert post(make_state(FakeEngine(dies_after=2)), max_tokens=9).status_code == 503
    assert state.metrics.records[0].outcome is Outcome.ERROR  # type: ignore[attr-defined]


def test_an_unexpected_failure_is_a_500_without_its_cause() -> None:
    class Broken(FakeEngine):
        async def submit(self, requests: object) -> None:
            raise RuntimeError("secret detail")

    state = make_state(Broken())
    response = post(state)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert state.metrics.records[0].outcome is Outcome.ERROR  # type: ignore[attr-defined]


def test_the_engine_is_told_with_how_many_tokens_a_stop_string_was_complete() -> None:
    state = make_state(FakeEngine(saying("abcdefgh"), tokens_per_event=4))
    assert post(state, stop="b", max_tokens=9).json()["usage"]["completion_tokens"] == 2
    ((_, choice, num_tokens),) = state.engine.finished  # type: ignore[attr-defined]
    assert (choice, num_tokens) == (0, 2)


async def test_a_clients_request_id_is_a_label_and_nothing_more() -> None:
    engine = FakeEngine()
    label = {"x-request-id": "mine-1\t<script>" + "x" * 500}
    async with client_of(create_app(make_state(engine))) as client:
        posts = (client.post("/v1/completions", json=BODY, headers=label) for _ in range(2))
        responses = await asyncio.gather(*posts)
    assert {response.headers["x-request-id"] for response in responses} == {
        "mine-1script" + "x" * 113
    }
    assert len({request.request_id for request in engine.seen}) == 2
    assert not any("mine" in request.request_id for request in engine.seen)


async def test_the_official_client_reads_it_streamed_and_not() -> None:
    import openai

    state = make_state(FakeEngine(saying("深度学习是")))
    async with client_of(create_app(state)) as http:
        client = openai_client(http)
        whole = await client.completions.create(model="tiny", prompt="a", max_tokens=20, logprobs=1)
        assert whole.choices[0].text == "深度学习是"
        assert whole.choices[0].logprobs is not None
        stream = await client.completions.create(
            model="tiny", prompt="a", max_tokens=20, stream=True
        )
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "深度学习是"
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="other", prompt="a")


async def test_the_official_client_raises_what_breaks_a_stream() -> None:
    import openai

    async with client_of(create_app(make_state(FakeEngine(dies_after=3)))) as http:
        stream = await openai_client(http).completions.create(
            model="tiny", prompt="a", max_tokens=20, stream=True
        )
        with pytest.raises(openai.APIError, match="The engine died"):
            async for _ in stream:
                pass


def test_capacity_refusals_pass_through() -> None:
    failure = QuireError(ErrorCode.CAPACITY, "The request needs more blocks than there are.")
    response = post(make_state(FakeEngine(failure=failure)))
    assert (response.status_code, response.json()["error"]["code"]) == (
        400,
        "request_exceeds_capacity",
    )


def test_one_prompts_failure_ends_the_others_in_the_engine() -> None:
    class FailsFirst(FakeEngine):
        async def _events(self, request: Any) -> Any:
            async for event in super()._events(request):
                if request.request_id.endswith("-0"):
                    raise QuireError(ErrorCode.NON_FINITE, "The logits are not finite.")
                yield event

    engine = FailsFirst(token_delay=0.01)
    state = make_state(engine)
    response = post(state, prompt=["a", "b"], max_tokens=50)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "non_finite_logits")
    assert engine.aborted == [engine.seen[1].request_id]
    assert len(state.metrics.records) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "kind", ['Application/JSON; Charset="UTF-8"', "application/json;charset=utf-8"]
)
def test_a_content_type_may_be_written_in_any_valid_way(kind: str) -> None:
    sent = {"content": json.dumps(BODY), "headers": {"content-type": kind}}
    response = with_client(make_state(), lambda client: client.post("/v1/completions", **sent))
    assert response.status_code == 200

"""Every bad request we could think of, as data: each is a 4xx of the one shape, whoever serves it.

``cases(...)`` takes what differs between servers: the model's name, its vocabulary, context and
body limit. The in-process tests and the end-to-end tests run the same list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.api.bad_case import CHAT, COMPLETIONS, BadRequest, ServerFacts, completion, with_member
from tests.api.bad_chats import bad_chat_fields, bad_messages

__all__ = ["BadRequest", "ServerFacts", "cases"]


def cases(facts: ServerFacts) -> list[BadRequest]:
    found = [
        *_malformed(facts),
        *_http(facts),
        *_fields(facts),
        *_ranges(facts),
        *_prompts(facts),
        *_lists(facts),
        *_combinations(facts),
        *_refused(facts),
        *bad_messages(facts),
        *bad_chat_fields(facts),
    ]
    names = [case.name for case in found]
    if len(set(names)) != len(names):
        raise ValueError("two cases have one name")
    return found


def _bad(
    facts: ServerFacts, name: str, value: Any, code: str | None = "invalid_value", label: str = ""
) -> BadRequest:
    body = json.dumps(completion(facts, **{name: value})).encode()
    return BadRequest(f"{name} {label or repr(value)[:40]}", body, 400, code)


def _malformed(facts: ServerFacts) -> Iterator[BadRequest]:
    model = json.dumps(facts.model)
    for name, body in (
        ("empty body", b""),
        ("blank body", b"  \n"),
        ("not JSON", b"model=tiny&prompt=a"),
        ("truncated", b'{"model": "tiny", "prompt"'),
        ("unclosed string", b'{"model": "tiny'),
        ("unclosed string of escaped quotes", b'{"a": "' + b'\\"' * 20_000),
        ("trailing comma", b'{"model": "tiny",}'),
        ("trailing text", b'{"model": "tiny"} x'),
        ("two objects", b"{}{}"),
        ("single quotes", b"{'model': 'tiny'}"),
        ("comment", b'{"model": "tiny" /* why */}'),
        ("list", b"[]"),
        ("string", b'"text"'),
        ("number", b"1"),
        ("null", b"null"),
        ("true", b"true"),
        ("byte order mark", b"\xef\xbb\xbf{}"),
        ("UTF-16", '{"model": "tiny"}'.encode("utf-16")),
        ("invalid UTF-8", b'{"model": "\xff\xfe"}'),
        ("overlong UTF-8", b'{"model": "\xc0\xaf"}'),
        ("raw surrogate bytes", b'{"prompt": "\xed\xa0\x80"}'),
        ("truncated UTF-8", b'{"prompt": "\xe6\xb7"}'),
        ("NUL bytes", b"\x00\x00\x00"),
        ("control character in string", b'{"prompt": "a\x01"}'),
        ("bad escape", b'{"prompt": "\\q"}'),
        ("short unicode escape", b'{"prompt": "\\u12"}'),
        ("key without quotes", b"{model: 1}"),
        ("key not a string", b"{1: 2}"),
        ("deep lists", b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
        ("deep objects", b'{"a":' * 40_000 + b"1" + b"}" * 40_000),
        ("deep and unclosed", b"[" * 500_000),
        ("deeper by one than allowed", b'{"prompt": ' + b"[" * 32 + b"]" * 32 + b"}"),
        ("lone high surrogate", b'{"model": %s, "prompt": "\\ud83d"}' % model.encode()),
        ("lone low surrogate", b'{"model": %s, "prompt": "a\\udc00b"}' % model.encode()),
        ("surrogates swapped", b'{"model": %s, "prompt": "\\ude00\\ud83d"}' % model.encode()),
        ("surrogate in a key", b'{"model": %s, "\\ud800": 1}' % model.encode()),
        (
            "surrogate in stop",
            b'{"model": %s, "prompt": "a", "stop": ["\\uD800"]}' % model.encode(),
        ),
    ):
        yield BadRequest(f"body: {name}", body, 400, "invalid_request")
    for name, raw in (
        ("key twice", '"prompt": "b"'),
        ("nested key twice", '"logit_bias": {"1": 1, "1": 2}'),
        ("NaN", '"temperature": NaN'),
        ("Infinity", '"temperature": Infinity'),
        ("minus Infinity", '"temperature": -Infinity'),
        ("integer of 5000 digits", '"seed": 1' + "0" * 5000),
        ("leading zero", '"seed": 01'),
        ("plus sign", '"seed": +1'),
        ("hexadecimal", '"seed": 0x10'),
        ("bare point", '"temperature": .5'),
    ):
        yield BadRequest(f"body: {name}", with_member(facts, raw), 400, "invalid_request")


def _http(facts: ServerFacts) -> Iterator[BadRequest]:
    good = json.dumps(completion(facts)).encode()
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        "application/jsonp",
        "text/json",
    ):
        yield BadRequest(
            f"content type {kind}",
            good,
            415,
            "unsupported_media_type",
            headers={"content-type": kind},
        )
    gzip = {"content-type": "application/json", "content-encoding": "gzip"}
    yield BadRequest("content encoding", good, 415, "unsupported_media_type", headers=gzip)
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in (COMPLETIONS, CHAT):
            yield BadRequest(
                f"{method} {path}", b"", 405, "method_not_allowed", path=path, method=method
            )
    for path in ("/", "/v1/models", "/health", "/metrics", "/docs", "/openapi.json"):
        yield BadRequest(f"POST {path}", good, 405, "method_not_allowed", path=path)
    for path in ("/v1", "/v1/completions/", "/v1/embeddings", "/redoc", "/docs/oauth2-redirect"):
        yield BadRequest(f"nothing at {path}", good, 404, "not_found", path=path)
    yield BadRequest("unknown model card", b"", 404, "model_not_found", None, "/v1/models/x", "GET")
    for query in ("format=x", "format=", "form=text", "format=text&format=json", "id=a"):
        yield BadRequest(query, b"", 400, "invalid_value", None, f"/memory?{query}", "GET")
    huge = b'{"prompt": "' + b"a" * facts.max_body_bytes + b'"}'
    yield BadRequest("body too large", huge, 413, "request_too_large")
    yield BadRequest("chat body too large", huge, 413, "request_too_large", path=CHAT)


def _fields(facts: ServerFacts) -> Iterator[BadRequest]:
    wrong = {
        "prompt": (1, True, {}, {"a": 1}, 1.5),
        "model": (1, True, [], {}),
        "max_tokens": ("1", 1.5, True, [], {}, 1.0),
        "min_tokens": ("1", 1.5, False, []),
        "n": ("1", 1.5, True, [1], {}),
        "temperature": ("1", True, [], {}),
        "top_p": ("1", False, [0.5]),
        "top_k": ("1", 2.5, True, []),
        "min_p": ("0", True, {}),
        "presence_penalty": ("0", True, []),
        "frequency_penalty": ("0", True, {}),
        "repetition_penalty": ("1", True, []),
        "stop": (1, True, {}, [1], [None], [["a"]]),
        "stop_token_ids": (1, "1", {}, ["1"], [1.5], [True], [None]),
        "ignore_eos": (1, "true", []),
        "seed": ("1", 1.5, True, []),
        "logit_bias": ([1], "x", 1, {"1": "2"}, {"1": True}, {"1": None}),
        "logprobs": ("1", 1.5, True, []),
        "echo": (1, "true", []),
        "stream": (1, "true", []),
        "stream_options": ([], "x", True, {"include_usage": 1}),
        "user": (1, True, [], {}),
        "priority": ("1", 1.5, True),
        "cache_salt": (1, True, []),
    }
    for name, values in wrong.items():
        for value in values:
            yield _bad(facts, name, value, "invalid_type")
    for missing in ("prompt",):
        for label, value in (("missing", ...), ("null", None)):
            body = completion(facts, **{missing: value})
            if value is ...:
                del body[missing]
            yield BadRequest(
                f"{missing} {label}", json.dumps(body).encode(), 400, "missing_required_parameter"
            )
    unknown = json.dumps(completion(facts, model="no-such-model")).encode()
    yield BadRequest("model unknown", unknown, 404, "model_not_found")
    traversal = json.dumps(completion(facts, model="../../etc/passwd")).encode()
    yield BadRequest("model is a path", traversal, 404, "model_not_found")
    yield _bad(facts, "model", "x" * 2000, label="too long")


def _ranges(facts: ServerFacts) -> Iterator[BadRequest]:
    huge = 10**30
    outside = {
        "max_tokens": (-1, huge, -huge, facts.max_model_len + 1),
        "min_tokens": (-1, huge),
        "n": (0, -1, facts.max_n + 1, huge),
        "temperature": (-0.1, 2.1, 1e308, -huge, huge),
        "top_p": (0, -0.1, 1.01),
        "top_k": (-2, huge),
        "min_p": (-0.01, 1.01),
        "presence_penalty": (-2.1, 2.1),
        "frequency_penalty": (-2.1, 2.1),
        "repetition_penalty": (0, -1, 1e-38, 0.0099, 100.1, 1000),
        "seed": (huge, -huge),
        "logprobs": (-1, facts.max_logprobs + 1, huge),
        "priority": (huge, -huge),
    }
    for name, values in outside.items():
        for value in values:
            yield _bad(facts, name, value)
    for name in ("temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty"):
        body = with_member(facts, f'"{name}": 1e999')
        yield BadRequest(f"{name} overflows to infinity", body, 400, "invalid_value")
    million = with_member(facts, '"temperature": ' + "9" * 4000)
    yield BadRequest("temperature of 4000 digits", million, 400, "invalid_value")


def _prompts(facts: ServerFacts) -> Iterator[BadRequest]:
    vocab, context = facts.vocab_size, facts.max_model_len
    for label, value, code in (
        ("empty string", "", "invalid_value"),
        ("empty list", [], "invalid_value"),
        ("list of an empty string", [""], "invalid_value"),
        ("list of an empty list", [[]], "invalid_value"),
        ("one empty among others", ["a", ""], "invalid_value"),
        ("mixed text and id", ["a", 1], "invalid_type"),
        ("mixed id and text", [1, "a"], "invalid_type"),
        ("mixed lists", [[1], "a"], "invalid_type"),
        ("three levels", [[[1]]], "invalid_type"),
        ("null in a list", [None], "invalid_type"),
        ("boolean id", [1, True], "invalid_type"),
        ("first boolean id", [True], "invalid_type"),
        ("fractional id", [1, 1.5], "invalid_type"),
        ("negative id", [-1], "invalid_value"),
        ("id just past the vocabulary", [vocab], "invalid_value"),
        ("huge id", [10**30], "invalid_value"),
        ("nested id past the vocabulary", [[1], [vocab]], "invalid_value"),
        ("ids as long as the context and one more", [1] * (context + 1), "context_length_exceeded"),
        ("ids that leave no room", [1] * context, "context_length_exceeded"),
        ("enormous list of ids", [1] * 100_000, "context_length_exceeded"),
        ("enormous text", "word " * 50_000, "context_length_exceeded"),
        ("enormous single word", "a" * 200_000, "context_length_exceeded"),
        ("enormous list of texts", ["a"] * 50_000, "invalid_value"),
        ("enormous list of lists", [[1]] * 50_000, "invalid_value"),
    ):
        body = json.dumps(completion(facts, prompt=value)).encode()
        yield BadRequest(f"prompt {label}", body, 400, code)


def _lists(facts: ServerFacts) -> Iterator[BadRequest]:
    yield _bad(facts, "stop", ["a", ""])
    yield _bad(facts, "stop", [f"{index}" for index in range(17)], label="of 17 strings")
    yield _bad(facts, "stop", ["a"] * 10_000, label="enormous list")
    yield _bad(facts, "stop", "a" * 5000, label="enormous string")
    yield _bad(facts, "stop_token_ids", [-1])
    yield _bad(facts, "stop_token_ids", [facts.vocab_size])
    yield _bad(facts, "stop_token_ids", [10**30])
    yield _bad(facts, "stop_token_ids", [1] * 10_000, label="enormous list")
    for key in ("-1", str(facts.vocab_size), "1.5", "a", "", "1e1", " 1", "١", "9" * 100):
        yield _bad(facts, "logit_bias", {key: 1})
    for value in (100.5, -101, 10**30):
        yield _bad(facts, "logit_bias", {"1": value})
    yield _bad(facts, "logit_bias", {"1": 1, "01": 2})
    yield _bad(facts, "logit_bias", {str(id): 0 for id in range(5000)}, label="enormous object")
    yield _bad(facts, "user", "u" * 5000, label="too long")
    yield _bad(facts, "cache_salt", "s" * 5000, label="too long")
    infinite = with_member(facts, '"logit_bias": {"1": 1e999}')
    yield BadRequest("logit_bias overflows to infinity", infinite, 400, "invalid_value")


def _combinations(facts: ServerFacts) -> Iterator[BadRequest]:
    for label, changes, code in (
        ("stream_options without stream", {"stream_options": {"include_usage": True}}, None),
        ("min_tokens above max_tokens", {"min_tokens": 2}, "invalid_value"),
        ("too many choices", {"prompt": ["a"] * 60, "n": facts.max_n}, "invalid_value"),
        (
            "prompt and max_tokens exceed the context",
            {"prompt": [1] * (facts.max_model_len - 1), "max_tokens": 2},
            "context_length_exceeded",
        ),
    ):
        body = json.dumps(completion(facts, **changes)).encode()
        yield BadRequest(label, body, 400, code)


def _refused(facts: ServerFacts) -> Iterator[BadRequest]:
    for name, value in (
        ("best_of", 2),
        ("suffix", "x"),
        ("use_beam_search", True),
        ("num_beams", 4),
        ("prompt_logprobs", 1),
        ("response_format", {"type": "json_object"}),
        ("structured_outputs", {"regex": "a"}),
        ("guided_json", {}),
        ("allowed_token_ids", [1]),
        ("bad_words", ["x"]),
        ("include_stop_str_in_output", True),
        ("skip_special_tokens", False),
        ("truncate_prompt_tokens", 5),
        ("no_repeat_ngram_size", 2),
    ):
        yield _bad(facts, name, value, "unsupported_parameter")
    yield _bad(facts, "messages", [], "unsupported_parameter")
    for name in ("temprature", "", "x" * 5000, "model ", "__proto__", "Prompt", "深度"):
        yield _bad(facts, name, 1, "unknown_parameter", label=f"is unknown: {name[:20]!r}")
    streaming = {"stream": True}
    for options, code in (
        ({"include_usage": "yes"}, "invalid_type"),
        ({"continuous_usage_stats": "yes"}, "invalid_type"),
        ({"include_obfuscation": True}, "unsupported_parameter"),
        ({"other": 1}, "unknown_parameter"),
    ):
        body = json.dumps(completion(facts, stream_options=options, **streaming)).encode()
        yield BadRequest(f"stream_options {options}", body, 400, code)

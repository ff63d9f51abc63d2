"""OutputProcessor: events in, deltas out; streamed and whole are the same by construction."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.events import ChoiceOutput, PromptOutput
from server.engine.request import EngineError, EngineRequest, FinishReason, SamplingParams
from server.engine.step_plan import LogprobArrays
from server.errors import ErrorCode, QuireError
from server.output.choice import Delta
from server.output.logprobs import chat_logprobs, completion_logprobs
from server.output.processor import ChoiceResult, Collector, OutputOptions, OutputProcessor
from server.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import byte_fallback, byte_level

LEVEL = Tokenizer(byte_level())
FALLBACK = Tokenizer(byte_fallback())
(END,) = LEVEL.special_ids
EMOJI = "👩‍👩‍👧"


def processor(
    prompt: Sequence[int] = (65,), n: int = 1, tokenizer: Tokenizer = LEVEL, **changes: Any
) -> OutputProcessor:
    sampling = {
        name: changes.pop(name)
        for name in ("min_tokens", "stop_token_ids", "logprobs", "prompt_logprobs")
        if name in changes
    }
    request = EngineRequest("r", tuple(prompt), SamplingParams(seed=0, **sampling), n=n)
    return OutputProcessor(tokenizer, request, OutputOptions(**changes))


def arrays(rows: Sequence[Sequence[tuple[int, float]]]) -> LogprobArrays:
    ids = array("i", [id for row in rows for id, _ in row])
    values = array("f", [value for row in rows for _, value in row])
    return LogprobArrays(len(rows), len(rows[0]), ids.tobytes(), values.tobytes())


def play(
    one: OutputProcessor,
    ids: Sequence[int],
    sizes: Sequence[int] = (1,),
    finish: FinishReason = FinishReason.LENGTH,
    **end: Any,
) -> tuple[list[Delta], ChoiceResult]:
    """Sends ``ids`` in events of ``sizes`` tokens (repeated), as far as a stop string lets it."""
    deltas: list[Delta] = []
    start, turn = 0, 0
    while start < len(ids) or not turn:
        size = max(1, sizes[turn % len(sizes)])
        chunk, start, turn = tuple(ids[start : start + size]), start + size, turn + 1
        last = start >= len(ids)
        event = ChoiceOutput("r", 0, chunk, None, finish if last else None, **(end if last else {}))
        delta = one.feed(event)
        deltas += [delta] if delta else []
    collector = Collector(1)
    for delta in deltas:
        collector.add(0, delta)
    return deltas, collector.results()[0]


def whole(text_ids: Sequence[int], tokenizer: Tokenizer, stops: Sequence[str]) -> str:
    text = tokenizer.decode(text_ids)
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return text[: end - len(max(matches, key=len))]
    return text


@settings(max_examples=400, deadline=None)
@given(data=st.data(), fallback=st.booleans())
def test_any_ids_any_events_any_stops_give_the_whole_text_up_to_the_stop(
    data: st.DataObject, fallback: bool
) -> None:
    tokenizer = FALLBACK if fallback else LEVEL
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    text = tokenizer.decode(ids)
    stops = data.draw(
        st.lists(
            st.text("深度学é a.", min_size=1, max_size=3)
            | (st.sampled_from(text) if text else st.just("x")),
            max_size=3,
            unique=True,
        )
    )
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    one = processor(tokenizer=tokenizer, stops=tuple(stops), continuation=False)
    _, result = play(one, ids, sizes)
    assert result.text == whole(ids, tokenizer, stops)
    assert one.finished
    assert (result.finish_reason == "stop") == (result.stop_reason is not None)


@pytest.mark.parametrize("text", ["ab深度学习是c", f"x{EMOJI}y{EMOJI}", "naïve 深 é"])
def test_stop_strings_at_every_place_of_a_text_cut_into_bytes(text: str) -> None:
    ids = list(text.encode())
    for start in range(len(text)):
        for end in range(start + 1, min(start + 4, len(text)) + 1):
            stop = text[start:end]
            for size in (1, 2, 3, 7):
                one = processor(stops=(stop,))
                deltas, result = play(one, ids, (size,))
                assert result.text == text[: text.index(stop)]
                assert result.stop_reason == stop
                assert not any("\ufffd" in delta.text for delta in deltas)
                needed = len(text[: text.index(stop) + len(stop)].encode())
                assert one.num_completion_tokens == needed


def test_tokens_after_the_stop_are_discarded_and_the_engine_is_told_once() -> None:
    one = processor(stops=("b",))
    delta = one.feed(ChoiceOutput("r", 0, tuple(b"abcd")))
    assert delta is not None
    assert (delta.text, delta.num_tokens, delta.finish_reason, delta.stop_reason) == (
        "a",
        2,
        "stop",
        "b",
    )
    assert list(one.take_stopped()) == [(0, 2)]
    assert list(one.take_stopped()) == []
    crossing = ChoiceOutput("r", 0, tuple(b"ef"), None, FinishReason.LENGTH)
    assert one.feed(crossing) is None
    assert one.num_completion_tokens == 2
    assert one.finish_reasons == ("stop",)


def test_a_stop_string_in_the_last_event_needs_no_word_to_the_engine() -> None:
    one = processor(stops=("b",))
    _, result = play(one, list(b"ab"), (2,))
    assert result.finish_reason == "stop"
    assert list(one.take_stopped()) == []


def test_a_stop_string_that_completes_only_with_the_held_bytes() -> None:
    ids = [3 + byte for byte in "a深".encode()]
    one = processor(tokenizer=FALLBACK, stops=("深",))
    _, result = play(one, ids)
    assert (result.text, result.finish_reason, result.stop_reason) == ("a", "stop", "深")


def test_min_tokens_holds_off_stop_strings() -> None:
    one = processor(stops=("b",), min_tokens=4)
    _, result = play(one, list(b"abcbd"))
    assert result.text == "abc"
    assert one.num_completion_tokens == 4


def test_the_token_that_ended_the_choice_is_counted_but_is_no_text() -> None:
    named = processor(stop_token_ids=(67,))
    _, result = play(named, list(b"ABC"), finish=FinishReason.STOP, stop_token_id=67)
    assert (result.text, result.stop_reason) == ("AB", 67)
    assert named.num_completion_tokens == 3
    natural = processor()
    _, result = play(natural, [65, END], finish=FinishReason.STOP, stop_token_id=END)
    assert (result.text, result.stop_reason, result.finish_reason) == ("A", None, "stop")


def test_choices_grow_apart() -> None:
    one = processor(n=2, stops=("b",))
    for choice, ids in ((0, b"ab"), (1, b"xy")):
        one.feed(ChoiceOutput("r", choice, tuple(ids)))
    assert not one.finished
    one.feed(ChoiceOutput("r", 1, (), None, FinishReason.LENGTH))
    assert one.finished
    assert one.finish_reasons == ("stop", "length")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (EngineError.NON_FINITE, ErrorCode.NON_FINITE),
        (EngineError.OUT_OF_MEMORY, ErrorCode.OUT_OF_MEMORY),
        (None, ErrorCode.INTERNAL),
    ],
)
def test_an_engine_error_is_raised_with_its_code(
    code: EngineError | None, expected: ErrorCode
) -> None:
    failing = ChoiceOutput(
        "r", 0, (), None, FinishReason.ERROR, error_code=code, error_message="broken"
    )
    with pytest.raises(QuireError, match="broken") as raised:
        processor().feed(failing)
    assert raised.value.code is expected


def test_a_request_that_waited_too_long_is_told_when_to_come_back() -> None:
    late = ChoiceOutput("r", 0, (), None, FinishReason.ERROR, error_code=EngineError.QUEUE_TIMEOUT)
    with pytest.raises(QuireError) as raised:
        processor().feed(late)
    assert raised.value.retry_after == 1


def test_echo_with_logprobs_begins_with_null_and_keeps_offsets() -> None:
    one = processor(list("a深".encode()), echo=True, logprobs=1, prompt_logprobs=1)
    rows = [[(id, -0.5), (66, -0.25)] for id in "深".encode()]
    assert one.feed(PromptOutput("r", 3, 1, arrays(rows[:1]))) is None
    assert one.feed(PromptOutput("r", 3, 2, arrays(rows[1:]))) is None
    output = ChoiceOutput("r", 0, (98,), arrays([[(98, -1.0), (99, -0.75)]]), FinishReason.LENGTH)
    delta = one.feed(output)
    assert delta is not None
    assert delta.text == "a深b"
    form = completion_logprobs(LEVEL, delta.logprobs)
    assert form == {
        "tokens": ["a", "bytes:\\xe6", "bytes:\\xb7", "bytes:\\xb1", "b"],
        "token_logprobs": [None, -0.5, -0.5, -0.5, -1.0],
        "top_logprobs": [
            None,
            {"B": -0.25, "bytes:\\xe6": -0.5},
            {"B": -0.25, "bytes:\\xb7": -0.5},
            {"B": -0.25, "bytes:\\xb1": -0.5},
            {"c": -0.75, "b": -1.0},
        ],
        "text_offset": [0, 1, 1, 1, 2],
    }
    assert one.num_cached_tokens == 3


def test_echo_without_new_tokens_scores_the_prompt_alone() -> None:
    one = processor(list(b"hi"), echo=True, prompt_logprobs=0)
    one.feed(PromptOutput("r", 0, 1, arrays([[(105, -0.5)]])))
    delta = one.feed(ChoiceOutput("r", 0, (), None, FinishReason.LENGTH))
    assert delta is not None
    assert delta.text == "hi"
    assert [entry.logprob for entry in delta.logprobs] == [None, -0.5]


def test_logprobs_of_a_removed_stop_string_go_with_it() -> None:
    one = processor(stops=("bc",), logprobs=0)
    rows = arrays([[(id, -float(id))] for id in b"abc"])
    delta = one.feed(ChoiceOutput("r", 0, tuple(b"abc"), rows))
    assert delta is not None
    assert [entry.token_id for entry in delta.logprobs] == [97]


def test_the_chat_form_gives_bytes_and_no_infinity() -> None:
    one = processor(logprobs=1)
    rows = arrays([[(0xE6, -0.5), (65, float("-inf"))]])
    delta = one.feed(ChoiceOutput("r", 0, (0xE6,), rows, FinishReason.LENGTH))
    assert delta is not None
    assert chat_logprobs(LEVEL, delta.logprobs)["content"] == [
        {
            "token": "\ufffd",
            "logprob": -0.5,
            "bytes": [0xE6],
            "top_logprobs": [{"token": "A", "logprob": -9999.0, "bytes": [65]}],
        }
    ]

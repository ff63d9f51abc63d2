"""What admission counts for an answer bounds what a whole answer really takes on the host."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from server.api.routes.responses import ChatFormat, CompletionFormat, to_json
from server.config.options import DEMO_MODEL_DIR
from server.engine.events import ChoiceOutput, Event, PromptOutput
from server.engine.request import EngineRequest, FinishReason, SamplingParams
from server.engine.response_budget import LEAST_BYTES, MOST_BYTES, answer_limits, answer_size
from server.engine.step_plan import LogprobArrays
from server.execution.step_slots import pack_logprobs
from server.output.processor import Collector, OutputOptions, OutputProcessor
from server.text.tokenizer import Tokenizer

VOCAB = 4096
LIMITS = answer_limits(1 << 30)


def arrays(rng: np.random.Generator, positions: int, top: int) -> LogprobArrays:
    ids = rng.integers(3, VOCAB, (positions, 1 + top)).astype(np.int32)
    return pack_logprobs(ids, -rng.random((positions, 1 + top)).astype(np.float32), top)


def events(request: EngineRequest) -> list[Event]:
    """What the engine sends for it, from its first event to its last."""
    rng, sampling = np.random.default_rng(1), request.sampling
    found: list[Event] = []
    num_prompt = len(request.prompt_token_ids)
    if sampling.prompt_logprobs is not None:
        scores = arrays(rng, num_prompt - 1, sampling.prompt_logprobs)
        found.append(PromptOutput(request.request_id, 0, 1, scores))
    for index in range(sampling.max_tokens):
        for choice in range(request.n):
            logprobs = None if sampling.logprobs is None else arrays(rng, 1, sampling.logprobs)
            end = FinishReason.LENGTH if index == sampling.max_tokens - 1 else None
            token = (int(rng.integers(300, VOCAB)),)
            found.append(ChoiceOutput(request.request_id, choice, token, logprobs, end))
    return found


@pytest.mark.parametrize("form", [CompletionFormat, ChatFormat])
@pytest.mark.parametrize(
    ("prompt", "tokens", "n", "top", "echo"),
    [(300, 2, 1, 20, True), (120, 2, 4, 20, True), (10, 200, 4, 20, False), (400, 200, 4, 0, True)],
)
def test_an_answer_takes_no_more_than_is_counted(
    form: Any, prompt: int, tokens: int, n: int, top: int, echo: bool
) -> None:
    tokenizer = Tokenizer.from_folder(Path(DEMO_MODEL_DIR))
    sampling = SamplingParams(
        seed=0, max_tokens=tokens, logprobs=top, prompt_logprobs=top if echo else None
    )
    request = EngineRequest("r", tuple(range(300, 300 + prompt)), sampling, n=n)
    given = events(request)
    gc.collect()
    tracemalloc.start()
    processor, collector = OutputProcessor(tokenizer, request, OutputOptions(echo=echo)), None
    collector = Collector(n)
    for event in given:
        delta = processor.feed(event)
        if delta is not None:
            collector.add(delta.choice, delta)
    writer = form(tokenizer, SimpleNamespace(num_logprobs=top))
    to_json({"choices": [writer.full(result) for result in collector.results()]})
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    counted = answer_size(request).nbytes(LIMITS)
    assert taken <= counted
    assert counted <= 8 * taken, "nor is so much counted that nothing would be accepted"


def test_what_answers_may_take_is_a_share_of_what_the_plan_leaves() -> None:
    assert answer_limits(8 << 30).max_bytes == 2 << 30
    assert answer_limits(0).max_bytes == LEAST_BYTES
    assert answer_limits(1 << 40).max_bytes == MOST_BYTES

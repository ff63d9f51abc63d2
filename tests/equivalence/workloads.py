"""Requests that use everything a neighbour, a chunk or a preemption could spoil."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from server.engine.request import EngineRequest, SamplingParams

VOCAB = 160
NUM_TOKENS = 18
LONGEST = 128  # tokens of a prompt and its answer

GREEDY = SamplingParams(seed=0, temperature=0.0, max_tokens=NUM_TOKENS, logprobs=3, ignore_eos=True)
SEEDED = SamplingParams(
    seed=11,
    temperature=0.9,
    top_k=40,
    top_p=0.95,
    min_p=0.001,
    presence_penalty=0.4,
    frequency_penalty=0.5,
    repetition_penalty=1.2,
    max_tokens=NUM_TOKENS,
    logprobs=2,
    ignore_eos=True,
)


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, VOCAB, size=length).tolist())


def request(name: str, ids: tuple[int, ...], sampling: SamplingParams, n: int = 1) -> EngineRequest:
    return EngineRequest(request_id=name, prompt_token_ids=ids, sampling=sampling, n=n)


def mixed() -> list[EngineRequest]:
    """Different lengths, greedy and seeded, with penalties, bias, stop ids, scored prompts."""
    # Those that end early come first, so that the others' places in the batch change.
    return [
        request("scored", prompt(8, 41), replace(GREEDY, prompt_logprobs=2, max_tokens=5)),
        request("only scored", prompt(9, 64), replace(GREEDY, prompt_logprobs=0, max_tokens=0)),
        request("greedy", prompt(1, 37), GREEDY),
        request("short greedy", prompt(2, 3), replace(GREEDY, logprobs=0)),
        request("seeded", prompt(3, 53), SEEDED),
        request("seeded alike", prompt(4, 16), replace(SEEDED, seed=12, top_k=-1)),
        request("no penalties", prompt(5, 33), SamplingParams(
            seed=3, max_tokens=NUM_TOKENS, logprobs=0, ignore_eos=True)),
        request("repetition", prompt(6, 48), replace(GREEDY, repetition_penalty=1.5)),
        # Six tokens far above the rest: how often each was used decides which is next.
        request("rotating", prompt(10, 25), replace(
            GREEDY, frequency_penalty=1.9, presence_penalty=0.5,
            logit_bias=tuple((token_id, 40.0) for token_id in range(20, 26)))),
        request("biased", prompt(7, 20), replace(
            SEEDED, seed=5, logit_bias=((7, 4.0), (9, -100.0)), stop_token_ids=(7,), min_tokens=6)),
    ]  # fmt: skip


def prefixed() -> list[EngineRequest]:
    """Prompts that begin alike: whole blocks, a block and a half, and the very same prompt."""
    stem = prompt(20, 80)
    return [
        request("stem", stem, GREEDY),
        request("same", stem, replace(SEEDED, seed=4)),
        request("longer", stem + prompt(21, 30), SEEDED),
        request("leaves early", stem[:40] + prompt(22, 50), GREEDY),
        request("scored", stem, replace(GREEDY, prompt_logprobs=1, max_tokens=3)),
    ]


def growing() -> list[EngineRequest]:
    """Short prompts that grow to several blocks each."""
    samplings = (GREEDY, SEEDED, replace(SEEDED, seed=8), replace(GREEDY, frequency_penalty=0.7))
    return [
        request(f"growing {i}", prompt(40 + i, 30 - i), replace(sampling, max_tokens=40))
        for i, sampling in enumerate(samplings)
    ]


def several_choices() -> list[EngineRequest]:
    """One prompt, four choices, its last block partly filled."""
    return [request("choices", prompt(30, 41), replace(SEEDED, seed=77), n=4)]

"""What an answer can take on the host until its client has it, counted before it is accepted.

An answer's tokens and log-probabilities are held as objects in both processes, and once more as the
JSON that is sent. A number that the model computes in 8 bytes is then hundreds of bytes, once for
every choice that repeats the prompt: beside a prompt's rows of logits, which are cut to what there
is, this is what a request can make unboundedly large.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.request import AnswerLimits, EngineRequest


@dataclass(frozen=True, slots=True)
class AnswerSize:
    """The most that a request's choices can come to, all of them together.

    ``tokens`` are known or generated ones; ``numbers`` log-probabilities, each with its token.
    """

    tokens: int
    numbers: int

    def nbytes(self, limits: AnswerLimits) -> int:
        return self.tokens * limits.token_bytes + self.numbers * limits.logprob_bytes


def answer_size(request: EngineRequest) -> AnswerSize:
    """Every choice holds the prompt's tokens, and repeats the prompt's log-probabilities."""
    num_prompt, sampling = len(request.prompt_token_ids), request.sampling
    numbers = 0
    if sampling.logprobs is not None:
        numbers += sampling.max_tokens * (1 + sampling.logprobs)
    if sampling.prompt_logprobs is not None:
        numbers += num_prompt * (1 + sampling.prompt_logprobs)
    return AnswerSize(request.n * (num_prompt + sampling.max_tokens), request.n * numbers)

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


# Bytes that answers take on the host: what the engine is told to count with. No torch.
#
# Measured on CPython 3.11 over whole answers, the objects of both processes and the JSON together;
# a test holds them as a bound that is no more than a few times what is measured.

TOKEN_BYTES = 320  # a token: in the engine's lists, as a piece of text, as a piece of an answer
LOGPROB_BYTES = 1250  # a log-probability: with its token as text and bytes, in the longer form
LEAST_BYTES = 64 << 20
MOST_BYTES = 4 << 30
SHARE = 4  # of what the plan leaves of the host's memory, one part in so many


def answer_limits(host_bytes_left: int) -> AnswerLimits:
    """What all open answers together may take of the host's memory that the plan leaves."""
    most = min(MOST_BYTES, max(LEAST_BYTES, host_bytes_left // SHARE))
    return AnswerLimits(max_bytes=most, token_bytes=TOKEN_BYTES, logprob_bytes=LOGPROB_BYTES)

"""From what hypothesis drew to a request, and what the engine must say of it."""

from __future__ import annotations

from typing import Any

from server.engine.request import EngineError, EngineRequest, SamplingParams


class Asks:
    """Makes requests; some repeat or prolong an earlier prompt."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.prompts: list[tuple[int, ...]] = []

    def request(self, ask: dict[str, Any], request_id: str) -> EngineRequest:
        vocab = self.config["vocab"]
        tokens = tuple(token % vocab for token in ask["tokens"])
        if self.prompts and ask["kind"] != "new":
            earlier = self.prompts[ask["pick"] % len(self.prompts)]
            tokens = earlier if ask["kind"] == "repeat" else (*earlier[: ask["pick"] // 3], *tokens)
        if ask["poison"]:
            tokens = (*tokens, vocab)
        room = min(self.config["context"], self._pool_tokens()) if ask["fits"] else 26
        tokens = tokens[: max(1, room - ask["max_tokens"] // 2)]
        max_tokens = min(ask["max_tokens"], room - len(tokens))
        self.prompts.append(tokens[:12])
        salt, adapter, version = ask["scope"]
        sampling = SamplingParams(
            seed=ask["seed"],
            max_tokens=max_tokens,
            min_tokens=min(ask["min_tokens"], max_tokens),
            stop_token_ids=(0,) if ask["ends"] == "stop" else (),
            ignore_eos=ask["ends"] == "ignore",
            logprobs=ask["logprobs"],
            prompt_logprobs=ask["scored"],
        )
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=tokens,
            sampling=sampling,
            n=min(ask["n"], self.config["max_seqs"]) if ask["fits"] else ask["n"],
            priority=ask["priority"],
            adapter_id=adapter,
            adapter_version=version,
            cache_salt=salt,
        )

    def _pool_tokens(self) -> int:
        """The longest that a sequence can be, as far as the context goes."""
        fitting = (
            total
            for total in range(1, self.config["context"] + 1)
            if blocks_needed(self.config, total) <= self.config["num_blocks"]
        )
        return max(fitting, default=1)


def blocks_needed(config: dict[str, Any], total: int) -> int:
    """By counting: wherever a window and the rest of a step's chunk begin in a block."""
    size, needed = config["block_size"], 0
    for window in config["windows"]:
        whole = len({position // size for position in range(total)})
        if window is not None:
            span = window - 1 + config["budget"]
            starts = range(size)
            whole = min(whole, max(len({p // size for p in range(s, s + span)}) for s in starts))
        needed += whole
    return needed


def expected_refusal(config: dict[str, Any], requests: list[EngineRequest], num_queued: int) -> str:
    """By arithmetic of its own: what can never run, then what finds the queue full."""
    for request in requests:
        total = len(request.prompt_token_ids) + request.sampling.max_tokens
        blocks = blocks_needed(config, total)
        if request.n > config["max_seqs"]:
            return EngineError.CAPACITY
        if total > config["context"]:
            return EngineError.CONTEXT_LENGTH
        if blocks > config["num_blocks"]:
            return EngineError.CAPACITY
    if len(requests) > config["queue"]:
        return EngineError.CAPACITY
    return EngineError.QUEUE_FULL if num_queued + len(requests) > config["queue"] else ""

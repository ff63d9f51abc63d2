"""Engines of one checkpoint on a GPU, and what a workload gives on them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from server.engine.request import EngineRequest, SamplingParams
from server.execution.build import BuiltRunner, build_runner
from server.execution.cuda_graphs import GraphMode
from tests.engine_configs import engine_config
from tests.equivalence.harness import Run, run
from weights.spec import ModelSpec
from weights.synthetic.tiny_specs import tiny_llama

BACKEND = "triton"  # the tests of the tests take another

CONFIG = engine_config(
    format="bf16",
    block_size=64,
    num_blocks=160,
    max_num_seqs=32,
    max_num_batched_tokens=512,
    max_model_len=1024,
    max_logit_rows=512,
    max_logprobs=8,
)


def shape() -> ModelSpec:
    """Layers of Llama-3.2-1B's width and Llama-3.1-8B's heads; four of them, a quarter of its
    vocabulary."""
    return tiny_llama(
        num_query_heads=16,
        num_kv_heads=4,
        head_dim=128,
        hidden_size=2048,
        num_layers=4,
        intermediate_size=8192,
        vocab_size=32003,
        max_positions=1024,
        parameter_dtype="bf16",
    )


@dataclass(frozen=True)
class Model:
    """A folder of random weights; ``build`` makes a runner of it.

    One that captures at start is warmed up, which is when it does.
    """

    folder: Path
    vocab_size: int

    def build(self, *, graphs: GraphMode = GraphMode.LAZY, **changes: object) -> BuiltRunner:
        config = engine_config(CONFIG, **({"backend": BACKEND} | changes))
        return build_runner(
            self.folder, config, graphs=graphs, poison=True, warm_up=graphs is GraphMode.START
        )

    def requests(self, count: int, *, seed: int = 0, **sampling: object) -> list[EngineRequest]:
        """Greedy requests with prompts of 3 to 400 tokens, some of which begin alike."""
        draw = random.Random(seed)
        common = [draw.randrange(self.vocab_size) for _ in range(150)]
        params = SamplingParams(
            **(  # type: ignore[arg-type]
                {"seed": seed, "temperature": 0.0, "max_tokens": 12, "logprobs": 4}
                | {"ignore_eos": True}
                | sampling
            )
        )
        requests = []
        for index in range(count):
            own = [draw.randrange(self.vocab_size) for _ in range(draw.randrange(3, 250))]
            head = common[: draw.choice((0, 0, 64, 150))]
            requests.append(EngineRequest(f"r{index}", tuple(head + own), params))
        return requests


def tokens_of(outcome: Run) -> dict[tuple[str, int], list[int]]:
    return {key: choice.token_ids for key, choice in outcome.choices.items()}


def bits_of(outcome: Run) -> dict[tuple[str, int], tuple[list[int], bytes]]:
    """Tokens, and log-probabilities to the last bit."""
    return {
        key: (choice.token_ids, b"".join(nats.tobytes() for nats in choice.logprobs))
        for key, choice in outcome.choices.items()
    }


__all__ = ["CONFIG", "Model", "bits_of", "run", "shape", "tokens_of"]

"""Every family against transformers: log-probabilities of prompts, and greedy tokens however the
engine came by them. In float32, on sharp checkpoints that transformers itself has written.

`make test` takes one checkpoint of each family through one run in which prompts are chunked,
batched, found in the prefix cache and preempted; `make test-slow` takes the others, and each way
by itself at two block sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.execution.build import BuiltRunner
from server.memory.backends.native_cpu import NATIVE as NATIVE_BACKEND
from server.startup.supported_models import unserved_by
from tests.equivalence import harness
from tests.equivalence.harness import Run
from tests.equivalence.workloads import GREEDY, request
from tests.execution import stepping
from tests.native_kernels import native_is_there
from tests.parity import oracle
from tests.parity.family_checkpoints import (
    CASES,
    LONGROPE,
    VOCAB,
    WINDOW,
    Case,
    num_saved,
    write_case,
)
from weights import families
from weights.inventory import num_parameters

NATIVE = native_is_there()
# Of the size of logits: sharp checkpoints make more of rounding than real ones.
OFF_IN_INT8 = 0.5
NUM_GREEDY = 48
LENGTHS = (1, 17, 75)
PROMPTS = {
    length: np.random.default_rng(length).integers(3, VOCAB, size=length).tolist()
    for length in LENGTHS
}
ALL = [(family, index) for family, cases in CASES.items() for index in range(len(cases))]
FIRST = [(family, index) for family, index in ALL if index == 0]
OTHERS = [(family, index) for family, index in ALL if index]
GREEDILY = replace(GREEDY, max_tokens=NUM_GREEDY, logprobs=None)
SCORED = replace(GREEDILY, prompt_logprobs=0)
BUDGET = 21  # tokens of a step: prompts come in chunks


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and the model that transformers has written there."""

    folder: Path
    model: Any

    def built(self, block_size: int = 16, num_tokens: int = 4096, **changes: object) -> BuiltRunner:
        return harness.built_runner(
            self.folder, block_size=block_size, num_tokens=num_tokens, **changes
        )

    def tight(self, block_size: int) -> BuiltRunner:
        """Its pool holds one of the longest answers and a little: some are preempted."""
        longest = LENGTHS[-1] + NUM_GREEDY
        blocks = self.built(block_size, block_size).kv.blocks_at_once(1, longest, BUDGET) + 1
        return self.built(block_size, blocks * block_size)


def make(family: str, index: int, folder: Path) -> Checkpoint:
    return Checkpoint(folder, write_case(CASES[family][index], folder))


def requests() -> list[Any]:
    """Each prompt twice: scored, and again without, since only such a one is served from cache."""
    return [
        request(f"{name} {length}", tuple(ids), sampling)
        for name, sampling in {"scored": SCORED, "again": GREEDILY}.items()
        for length, ids in PROMPTS.items()
    ]


def repeated() -> list[Any]:
    """The longest prompt twice: one by one, the second is served from cache."""
    ids = tuple(PROMPTS[LENGTHS[-1]])
    short = replace(GREEDILY, max_tokens=1)
    return [
        request(f"{name} {LENGTHS[-1]}", ids, sampling)
        for name, sampling in {"first": short, "again": GREEDILY}.items()
    ]


def assert_answers_are_theirs(checkpoint: Checkpoint, *runs: Run) -> None:
    """transformers says in one pass over a prompt and its answer what it chooses after each token:
    the same as its ``generate`` does in a pass for each."""
    for length, ids in PROMPTS.items():
        answers = {
            name: choice.token_ids
            for run in runs
            for (name, _), choice in run.choices.items()
            if _length(name) == length
        }
        answer = max(answers.values(), key=len)
        assert len(answer) == NUM_GREEDY
        logits = oracle.logits(checkpoint.model, ids + answer[:-1])
        tokens = logits[length - 1 :].argmax(-1).tolist()
        for name, token_ids in answers.items():
            assert token_ids == tokens[: len(token_ids)], name

        nats = logits[: length - 1].log_softmax(-1)
        expected = nats.gather(1, torch.tensor(ids[1:], dtype=torch.int64).unsqueeze(1)).numpy()
        for run in runs:
            for name, scored in run.prompts.items():
                if _length(name) == length:
                    np.testing.assert_allclose(
                        np.concatenate(scored), expected, atol=1e-4, rtol=0, err_msg=name
                    )


def _length(name: str) -> int:
    return int(name.rpartition(" ")[2])


def name_of(case: tuple[str, int]) -> str:
    return f"{case[0]}-{case[1]}"


@pytest.mark.parametrize("case", FIRST, ids=name_of)
def test_a_checkpoint_of_the_family_answers_as_transformers_does(
    case: tuple[str, int], tmp_path: Path
) -> None:
    _check_whole(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS, ids=name_of)
def test_checkpoints_with_other_facts_answer_as_transformers_does(
    case: tuple[str, int], tmp_path: Path
) -> None:
    _check_whole(case, tmp_path)


def _check_whole(case: tuple[str, int], folder: Path) -> None:
    checkpoint = make(*case, folder)
    longest = PROMPTS[LENGTHS[-1]]
    assert oracle.relative_entropy(checkpoint.model, longest) < 0.6

    built = checkpoint.tight(block_size=16)
    assert num_parameters(built.model) == num_saved(checkpoint.model)
    theirs = oracle.logits(checkpoint.model, longest)
    serves = NATIVE and unserved_by(NATIVE_BACKEND, built.model) is None
    others = [checkpoint.built(backend="native")] if serves else []
    for runner in (built.runner, *(other.runner for other in others)):
        logits = stepping.all_logits(runner, longest)
        assert float((logits - theirs).abs().max() / theirs.abs().max()) <= 1e-4
    if serves:
        in_int8 = checkpoint.built(backend="native", quantization="int8").runner
        off = (stepping.all_logits(in_int8, longest) - theirs).pow(2).mean() / theirs.pow(2).mean()
        assert float(off) <= OFF_IN_INT8**2

    run = harness.run(built, requests(), budget=BUDGET, prefix_caching=True)
    assert run.preemptions and run.mixed_steps and run.most_rows >= 2
    varied = set(run.choices[f"again {LENGTHS[-1]}", 0].token_ids)
    assert len(varied) >= NUM_GREEDY // 3
    again = harness.run(built, repeated(), budget=BUDGET, prefix_caching=True, one_by_one=True)
    assert again.prefix_hit_tokens
    assert_answers_are_theirs(checkpoint, run, again)


@pytest.fixture(scope="module", params=ALL, ids=name_of)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Checkpoint]:
    yield make(*request.param, tmp_path_factory.mktemp("family"))


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("way", "block_size"),
    [
        *((way, size) for way in ("alone", "batched", "chunked", "cached") for size in (16, 64)),
        ("preempted", 16),  # answers of two blocks of 64 hardly ever lack a third
    ],
)
def test_each_way_to_an_answer_gives_the_tokens_of_transformers(
    checkpoint: Checkpoint, way: str, block_size: int
) -> None:
    tight = way == "preempted"
    built = checkpoint.tight(block_size) if tight else checkpoint.built(block_size)
    how: dict[str, Any] = {
        "alone": {"one_by_one": True},
        "batched": {},
        "chunked": {"budget": 13},
        "cached": {"prefix_caching": True, "one_by_one": True},
        "preempted": {"budget": BUDGET},
    }[way]
    run = harness.run(built, requests(), **how)
    assert (run.preemptions > 0) == tight
    assert (run.prefix_hit_tokens > 0) == (way == "cached")
    assert_answers_are_theirs(checkpoint, run)


@pytest.mark.parametrize("case", FIRST, ids=name_of)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_named(
    case: tuple[str, int], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from weights.checkpoint.folder import open_checkpoint
    from weights.checkpoint.matching import match
    from weights.errors import CheckpointError

    family, index = case
    write_case(CASES[family][index], tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    outputs = re.compile(r"(layers|blocks|h)\.1\..*(o_proj|out_proj|dense|attn\.c_proj)\.weight")
    name = next(one for one in sorted(whole) if outputs.search(one))
    wrong = {
        "missing": {key: one for key, one in whole.items() if key != name},
        "extra": {**whole, f"{name}.extra": whole[name].clone()},
        "shape": {**whole, name: whole[name][:-1].clone()},
    }
    words = {"missing": name, "extra": f"{name}.extra", "shape": f'"{name}" has the shape'}
    for kind, tensors in wrong.items():
        save_file(tensors, file, metadata={"format": "pt"})
        opened = open_checkpoint(tmp_path)
        served = families.resolve(opened.config)
        with pytest.raises(CheckpointError, match=re.escape(words[kind])):
            match(opened, served, served.spec(opened.config))


@pytest.mark.parametrize("kind", ["missing", "shape"])
def test_the_tensor_of_one_head_is_named(kind: str, tmp_path: Path) -> None:
    """StableLM keeps the norm of each head in a tensor of its own."""
    from safetensors.torch import load_file, save_file

    from weights.checkpoint.folder import open_checkpoint
    from weights.checkpoint.matching import match
    from weights.errors import CheckpointError

    write_case(CASES["stablelm"][2], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.q_layernorm.norms.3.weight"
    norm = tensors.pop(name)
    told = f'"{name}" has the shape [15]' if kind == "shape" else f'missing tensors: "{name}"'
    if kind == "shape":
        tensors[name] = norm[:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened = open_checkpoint(tmp_path)
    served = families.resolve(opened.config)
    with pytest.raises(CheckpointError, match=re.escape(told)):
        match(opened, served, served.spec(opened.config))


@pytest.mark.parametrize("length", [60, 120])
def test_longrope_takes_the_factors_of_the_longest_context(length: int, tmp_path: Path) -> None:
    """transformers chooses by the prompt, a server once: by the longest that it takes."""
    original = {"original_max_position_embeddings": 64}
    facts = {**original, "rope_parameters": {**LONGROPE, **original}}
    model = write_case(Case("Phi3Config", facts), tmp_path)
    ids = np.random.default_rng(3).integers(3, VOCAB, size=length).tolist()
    runner = stepping.built(tmp_path, max_model_len=length).runner
    theirs = oracle.logits(model, ids)
    error = (stepping.all_logits(runner, ids) - theirs).abs().max() / theirs.abs().max()
    assert float(error) <= 1e-4


@pytest.mark.parametrize(
    ("config", "facts", "scale"),
    [
        ("GemmaConfig", {"head_dim": 16, "hidden_size": 96}, 9.8125),  # sqrt(96) in bf16
        ("GraniteConfig", {"embedding_multiplier": 8.3, "residual_multiplier": 0.22}, 8.3),
    ],
)
def test_scales_are_rounded_where_transformers_rounds_them(
    config: str, facts: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    """In bf16: Gemma's embedding is scaled by a tensor of its own type, Granite's by a number."""
    model = write_case(Case(config, facts), tmp_path).to(torch.bfloat16)
    decoder = stepping.built(tmp_path, format="bf16", max_model_len=256).runner.decoder
    ids = torch.arange(3, 40)
    theirs = model.model(ids.unsqueeze(0), output_hidden_states=True).hidden_states[0][0]
    assert decoder.embedding_scale == scale
    assert torch.equal(decoder.embedding[ids] * decoder.embedding_scale, theirs)


def test_every_family_has_a_row() -> None:
    """gpt2's checkpoints are in test_parity."""
    assert {family.name for family in families.FAMILIES} == {*CASES, "gpt2"}
    assert all(len(cases) >= 2 for cases in CASES.values())
    assert LENGTHS[-1] > WINDOW

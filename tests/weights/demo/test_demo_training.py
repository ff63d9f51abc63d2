"""The trainer's parts: schedule, batches, optimiser; and that learning happens."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from weights.demo.corpus import Document
from weights.demo.data import CHUNK, Batches, cut, encode_documents
from weights.demo.model import DemoModel, Shape
from weights.demo.optim import Optimiser, Rates, orthogonalise
from weights.demo.score import CHECKPOINT
from weights.demo.tokenizer import END_OF_TEXT_ID, load_tokenizer
from weights.demo.train import factor


def test_schedule_rises_stays_and_falls_to_almost_nothing() -> None:
    rates = [factor(step + 1, 10, 100 - step, 30) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:71] == [1.0] * 62
    assert rates[70:] == sorted(rates[70:], reverse=True)
    assert 0 < rates[-1] < 0.04


def test_cuts_lose_nothing() -> None:
    text = "深度学习是\n" * 2_000
    parts = cut(text, random.Random(0))
    assert "".join(parts) == text
    assert 5 < len(parts) < 60


def test_stream_begins_each_document_with_the_mark_and_repeats_code() -> None:
    documents = [Document("a.py", "alpha = 1\n"), Document("test/b.py", "beta = 2\n")]
    tokenizer = load_tokenizer(CHECKPOINT)
    stream = encode_documents(tokenizer, documents, seed=0, code_copies=2).tolist()
    assert stream[0] == END_OF_TEXT_ID
    assert stream.count(END_OF_TEXT_ID) == 3
    text = tokenizer.decode(stream)
    assert text.count("alpha") == 2
    assert text.count("beta") == 1


def test_a_pass_holds_each_chunk_once_and_targets_follow_ids() -> None:
    stream = torch.arange(6 * CHUNK, dtype=torch.int32)
    batches = Batches(stream, seed=4)
    starts = [int(batches.chunk(i)[0]) for i in range(batches.per_pass)]
    assert len({start // CHUNK for start in starts}) == batches.per_pass
    assert len({start % CHUNK for start in starts}) == 1
    ids, targets = batches.batch(3, 2, CHUNK // 2)
    assert ids.shape == (4, CHUNK // 2)
    assert torch.equal(ids + 1, targets)
    assert torch.equal(Batches(stream, seed=4).batch(3, 2, CHUNK // 2)[0], ids)


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (2, 8, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalise(stack)
    assert result.shape == stack.shape
    values = torch.linalg.svdvals(result)
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.4


def test_the_optimiser_refuses_a_state_of_another_model() -> None:
    optimiser = Optimiser(DemoModel(Shape(vocab_size=8, num_hidden_layers=1)), Rates())
    with pytest.raises(ValueError, match="another model"):
        optimiser.load({})


def test_a_few_steps_lower_the_loss() -> None:
    shape = Shape(vocab_size=32, hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    model = DemoModel(shape)
    optimiser = Optimiser(model, Rates())
    ids = torch.arange(65).remainder(32).view(1, -1)
    losses = []
    with ThreadPoolExecutor(2) as pool:
        for count in range(1, 31):
            model.zero_grad()
            loss = model.loss(ids[:, :-1], ids[:, 1:])
            loss.backward()
            losses.append(float(loss.detach()))
            optimiser.step(count, 1.0, pool)
    assert losses[-1] < 0.3 * losses[0]

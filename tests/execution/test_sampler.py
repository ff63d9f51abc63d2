"""The sampler gives each row its own answer, however the logits are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from server.engine.request import SamplingParams
from server.execution.packing import pack_logprobs, unpack_logprobs
from server.execution.row_sampling import RowSampling
from server.execution.sampler import Sampled, Sampler, SampleWork

ROWS, VOCAB = 7, 40
LOGITS = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(3)) * 3
PARAMS = (
    SamplingParams(seed=1, temperature=0.0),
    SamplingParams(seed=2, top_p=0.8),
    SamplingParams(seed=3, temperature=0.0, logit_bias=((5, 50.0),)),
    SamplingParams(seed=4, frequency_penalty=1.0, presence_penalty=0.5),
    SamplingParams(seed=5, repetition_penalty=1.4, top_k=7),
    SamplingParams(seed=6, temperature=0.0),
    SamplingParams(seed=7, min_p=0.2),
)


def row_sampling() -> RowSampling:
    rows = RowSampling(
        {
            "row_sampling": torch.zeros(6, ROWS),
            "row_top_k": torch.zeros(ROWS, dtype=torch.int64),
            "row_keys": torch.zeros(ROWS, dtype=torch.int64),
            "output_counts": torch.zeros(ROWS, VOCAB, dtype=torch.int32),
            "prompt_mask": torch.zeros(ROWS, VOCAB, dtype=torch.bool),
        },
        vocab_size=VOCAB,
    )
    tokens = np.arange(9, dtype=np.int32)
    for row, params in enumerate(PARAMS):
        rows.admit(row, params, choice=0, prompt=tokens, output=tokens[:4] + row)
    return rows


def sample(logit_rows: int, sample_rows: int, logits: torch.Tensor = LOGITS) -> Sampled:
    sampler = Sampler(
        lambda hidden: logits[hidden[:, 0].long()],
        row_sampling(),
        logit_rows=logit_rows,
        sample_rows=sample_rows,
    )
    best = [int(row.argmax()) for row in LOGITS]
    work = SampleWork(
        rows=np.arange(ROWS),
        output_positions=np.full(ROWS, 4),
        forbidden=[(best[0],), (), (), (), (), (best[5], 1), ()],
        num_top=[2, None, 0, None, 3, 1, None],
    )
    return sampler.sample(torch.arange(ROWS, dtype=torch.float32).unsqueeze(1), work)


@pytest.mark.parametrize(("logit_rows", "sample_rows"), [(7, 3), (3, 2), (1, 1), (5, 9)])
def test_cuts_change_nothing(logit_rows: int, sample_rows: int) -> None:
    whole, cut = sample(7, 7), sample(logit_rows, sample_rows)
    for name in ("token_ids", "non_finite", "logprob_ids"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))
    np.testing.assert_allclose(cut.logprobs, whole.logprobs, atol=1e-6)


def test_each_row_is_chosen_by_its_own_parameters() -> None:
    got = sample(7, 7)
    assert got.token_ids[0] == LOGITS[0].topk(2).indices[1]  # its best was forbidden
    assert got.token_ids[2] == 5
    expected = LOGITS.log_softmax(-1)
    asked = [0, 2, 4, 5]
    np.testing.assert_allclose(
        got.logprobs[asked, 0], expected[asked, got.token_ids[asked]], atol=1e-6
    )
    assert (got.logprob_ids[:, 0] == got.token_ids)[asked].all()
    np.testing.assert_allclose(got.logprobs[4, 1:4], expected[4].topk(3).values, atol=1e-6)


def test_a_row_that_is_not_finite_harms_no_other() -> None:
    spoiled = LOGITS.clone()
    spoiled[3, 7] = float("nan")
    got, clean = sample(4, 2, spoiled), sample(7, 7)
    assert got.non_finite.tolist() == [False, False, False, True, False, False, False]
    others = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(got.token_ids[others], clean.token_ids[others])


def test_packed_logprobs_come_back_as_they_went() -> None:
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    nats = -np.arange(12, dtype=np.float32).reshape(3, 4)
    packed = pack_logprobs(ids, nats, num_top=2)
    assert (packed.num_positions, packed.width, len(packed.logprobs)) == (3, 3, 36)
    got_ids, got_nats = unpack_logprobs(packed)
    np.testing.assert_array_equal(got_ids, ids[:, :3])
    np.testing.assert_array_equal(got_nats, nats[:, :3])

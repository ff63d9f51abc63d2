"""The sampler gives each row its own answer, however the logits are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kernels.footprint.row_state import NUM_FLOATS, RowLayout, StepTable
from server.engine.request import SamplingParams
from server.engine.step_plan import AdmittedRow, PlannedRow, StepPlan
from server.execution.packet import PacketDraft
from server.execution.rows import Rows, record_head
from server.execution.sampler import Sampler
from server.execution.sampling_batch import plan_sampling
from server.execution.step_slots import pack_logprobs
from server.memory.runner_buffers import LogitLimits
from tests.execution.stepping import unpack_logprobs

ROWS, VOCAB = 7, 40
LOGITS = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(3)) * 3
BEST = LOGITS.argmax(dim=1).tolist()
WIDTH = 1 + 3  # of what is reported
PARAMS = (
    SamplingParams(seed=1, temperature=0.0, logprobs=2, stop_token_ids=(BEST[0],)),
    SamplingParams(seed=2, top_p=0.8),
    SamplingParams(seed=3, temperature=0.0, logit_bias=((5, 50.0),), logprobs=0),
    SamplingParams(seed=4, frequency_penalty=1.0, presence_penalty=0.5),
    SamplingParams(seed=5, repetition_penalty=1.4, top_k=7, logprobs=3),
    SamplingParams(seed=6, temperature=0.0, logprobs=1, stop_token_ids=(BEST[5], 1)),
    SamplingParams(seed=7, min_p=0.2),
)
ASKED = [row for row, params in enumerate(PARAMS) if params.logprobs is not None]
FORBIDDEN = [row for row, params in enumerate(PARAMS) if params.stop_token_ids]


@dataclass(frozen=True)
class Sampled:
    token_ids: npt.NDArray[np.int64]  # [ROWS]
    non_finite: npt.NDArray[np.bool_]
    logprob_ids: npt.NDArray[np.int32]  # [ASKED, WIDTH]
    logprobs: npt.NDArray[np.float32]


def sample(logit_rows: int, sample_rows: int, logits: torch.Tensor = LOGITS) -> Sampled:
    """Every row one token, its prompt nine tokens long and four more generated."""
    layout, table = RowLayout(4, 32), StepTable(ROWS)
    tokens = list(range(9))
    rows, draft = Rows(layout, max_num_seqs=ROWS, block_size=16), PacketDraft(table)
    plan = StepPlan(
        1,
        rows=tuple(
            PlannedRow(row, 13, samples=True, min_tokens_pending=row in FORBIDDEN)
            for row in range(ROWS)
        ),
        admitted=tuple(
            AdmittedRow(row, (*tokens, *(n + row for n in range(4))), 9, 0, params, 0, ((0,),))
            for row, params in enumerate(PARAMS)
        ),
    )
    rows.apply(plan, draft)
    step = rows.step(plan.rows)
    limits = LogitLimits(logit_rows, sample_rows, sample_rows, num_tops=tuple(range(WIDTH)))
    work = plan_sampling(plan, rows, step, draft, limits=limits, eos_token_ids=())
    packet = torch.zeros(draft.num_words, dtype=torch.int32)
    draft.write(packet.numpy())
    heads = torch.tensor([record_head(params, 0) for params in PARAMS], dtype=torch.int32)
    counts = torch.zeros(ROWS, VOCAB, dtype=torch.int32)
    mask = torch.zeros(ROWS, VOCAB, dtype=torch.bool)
    mask[:, tokens] = True
    for row in range(ROWS):
        counts[row, row : row + 4] = 1
    sampler = Sampler(
        {
            "row_state": heads,
            "output_counts": counts,
            "prompt_mask": mask,
            "step_floats": heads[:, 4 : 4 + NUM_FLOATS].t().contiguous().view(torch.float32),
            "step_top_k": heads[:, 1].long(),
            "step_keys": heads[:, 2:4].contiguous().view(torch.int64).view(-1),
            "step_output_positions": torch.full((ROWS,), 4),
        },
        lambda hidden, out: logits[hidden[:, 0].long()],
        limits,
    )
    slot = {
        "chosen_logprob_ids": torch.zeros(ROWS * WIDTH, dtype=torch.int32),
        "chosen_logprobs": torch.zeros(ROWS * WIDTH),
    }
    hidden = torch.arange(ROWS, dtype=torch.float32).unsqueeze(1)
    chosen = sampler.choose(work, packet, hidden, slot)
    assert work.asked_width == WIDTH
    report = {name: one.view(ROWS, WIDTH)[: len(ASKED)].numpy() for name, one in slot.items()}
    return Sampled(
        chosen.token_ids.numpy(),
        chosen.non_finite.numpy(),
        report["chosen_logprob_ids"],
        report["chosen_logprobs"],
    )


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
    given = got.token_ids[ASKED]
    np.testing.assert_allclose(got.logprobs[:, 0], expected[ASKED, given], atol=1e-6)
    assert (got.logprob_ids[:, 0] == given).all()
    np.testing.assert_allclose(
        got.logprobs[ASKED.index(4), 1:], expected[4].topk(3).values, atol=1e-6
    )


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

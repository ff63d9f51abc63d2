"""Choosing tokens on a CPU.

A row pays for what it asks: a plain greedy row costs a sum and a maximum; rows with penalties, bias
or forbidden tokens are copied and processed apart; rows that draw are copied and scaled; of these
only those that truncate see a selection. Rows are split by index, never looped over, and nothing
that is computed for a row depends on another one.

A draw adds Gumbel noise to the scaled logits (Maddison et al. 2014, arXiv 1411.0030). Philox is
the costly part, so tokens that cannot win are left out, exactly: the likeliest token scores at
least the least possible noise, so one that lies further below it than the noise's whole span
(GUMBEL_SPAN) has lost, whatever it draws.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu.philox import gumbel, sampling_bits
from kernels.cpu.truncation import drop_below, keep_best
from kernels.types import SampleOutput, SamplingTensors

GUMBEL_SPAN = 26.1  # from -log(33 log 2) = -3.130 to 22.874; the rest allows for rounding
LOGPROB_BYTES = 8 << 20  # log-probabilities held at once
MASK_BYTES = 2 << 20  # of a bitmask's bits, spread to 32 bits each, at once


def sample(logits: Tensor, params: SamplingTensors) -> SampleOutput:
    if not logits.shape[0]:
        empty = torch.empty(0, dtype=torch.int64)
        return SampleOutput(empty, empty.bool())
    best, token_ids = logits.max(dim=1)
    special = special_rows(logits, params)
    processed = logits.index_select(0, special)
    if special.shape[0]:
        process(processed, special, params)
        best[special], token_ids[special] = processed.max(dim=1)
    non_finite = non_finite_rows(logits) | ~best.isfinite()
    drawing = ((params.temperature > 0) & ~non_finite).nonzero().view(-1)
    if drawing.shape[0]:
        chosen = _padded_rows(logits, processed, special, drawing)
        chosen.sub_(best[drawing].unsqueeze(1)).div_(params.temperature[drawing].unsqueeze(1))
        _truncate(chosen, drawing, params, logits.shape[1])
        token_ids[drawing] = _draw(chosen, drawing, params)
    return SampleOutput(token_ids.masked_fill_(non_finite, 0), non_finite)


def non_finite_rows(logits: Tensor) -> Tensor:
    """Which rows hold a NaN or an infinity: their sum does too. A sum alone may overflow."""
    flagged = ~logits.sum(dim=1).isfinite()
    rows = flagged.nonzero().view(-1)
    if rows.shape[0]:
        flagged[rows] = ~logits.index_select(0, rows).isfinite().all(dim=1)
    return flagged


def special_rows(logits: Tensor, params: SamplingTensors) -> Tensor:
    """Rows whose logits change before the temperature, in rising order."""
    special = torch.zeros(logits.shape[0], dtype=torch.bool)
    for value, neutral in ((params.repetition, 1), (params.frequency, 0), (params.presence, 0)):
        if value is not None:
            special |= value != neutral
    if params.bitmask is not None:
        special |= _denies(params.bitmask, logits.shape[1])
    for sparse in (params.bias, params.forbidden):
        if sparse is not None:
            special[sparse.rows] = True
    return special.nonzero().view(-1)


def process(processed: Tensor, rows: Tensor, params: SamplingTensors) -> None:
    """In place on the special rows: penalties, bias, forbidden tokens, bitmask."""
    if params.output_counts is not None:
        _penalise(processed, rows, params, params.output_counts.index_select(0, rows))
    place = torch.zeros(params.temperature.shape[0], dtype=torch.int64)
    place[rows] = torch.arange(rows.shape[0])
    if params.bias is not None:
        index = (place[params.bias.rows], params.bias.ids)
        processed.index_put_(index, params.bias.values, accumulate=True)
    if params.forbidden is not None:
        index = (place[params.forbidden.rows], params.forbidden.ids)
        processed.index_put_(index, processed.new_full((), -torch.inf))
    if params.bitmask is not None:
        _mask(processed, params.bitmask.index_select(0, rows))


def _denies(bitmask: Tensor, vocab: int) -> Tensor:
    """Which rows of a bitmask [R, ceil(V / 32)] deny a token at all: its spare bits say nothing."""
    spare = -1 << vocab % 32 if vocab % 32 else 0
    whole = (bitmask[:, :-1] != -1).any(dim=1)
    return whole | ((bitmask[:, -1] | spare) != -1)


def _mask(processed: Tensor, words: Tensor) -> None:
    """Forbids what a bitmask [R, ceil(V / 32)] int32 does not allow, a few rows at a time."""
    bits = torch.arange(32, dtype=torch.int32)
    step = max(1, MASK_BYTES // (words.shape[1] * 32 * 4))
    for start in range(0, words.shape[0], step):
        part = slice(start, start + step)
        allowed = (words[part].unsqueeze(2) >> bits).bitwise_and_(1)
        denied = allowed.view(allowed.shape[0], -1)[:, : processed.shape[1]] == 0
        processed[part].masked_fill_(denied, -torch.inf)


def _penalise(processed: Tensor, rows: Tensor, params: SamplingTensors, counts: Tensor) -> None:
    generated = counts > 0
    if params.repetition is not None and params.prompt_mask is not None:
        penalty = params.repetition[rows].unsqueeze(1)
        seen = generated | params.prompt_mask.index_select(0, rows)
        penalised = torch.where(processed > 0, processed / penalty, processed * penalty)
        torch.where(seen, penalised, processed, out=processed)
    if params.frequency is not None:
        processed.sub_(params.frequency[rows].unsqueeze(1) * counts)
    if params.presence is not None:
        processed.sub_(params.presence[rows].unsqueeze(1) * generated)


def _padded_rows(logits: Tensor, processed: Tensor, special: Tensor, rows: Tensor) -> Tensor:
    """The rows to draw for, processed where special, with columns up to a multiple of four."""
    vocab = logits.shape[1]
    out = F.pad(logits.index_select(0, rows), (0, -vocab % 4), value=-torch.inf)
    if special.shape[0]:
        place = torch.full((logits.shape[0],), -1)
        place[special] = torch.arange(special.shape[0])
        source = place[rows]
        target = (source >= 0).nonzero().view(-1)
        out[target, :vocab] = processed.index_select(0, source[target])
    return out


def _truncate(scaled: Tensor, rows: Tensor, params: SamplingTensors, vocab: int) -> None:
    if params.min_p is not None:
        part = (params.min_p[rows] > 0).nonzero().view(-1)
        if part.shape[0]:
            kept = scaled.index_select(0, part)
            drop_below(kept, params.min_p[rows[part]])
            scaled.index_copy_(0, part, kept)
    count = scaled.shape[0]
    top_k = torch.zeros(count) if params.top_k is None else params.top_k[rows]
    top_p = torch.ones(count) if params.top_p is None else params.top_p[rows]
    part = (((top_k > 0) & (top_k < vocab)) | (top_p < 1)).nonzero().view(-1)
    if part.shape[0]:
        kept = scaled.index_select(0, part)
        keep_best(kept, top_k[part], top_p[part])
        scaled.index_copy_(0, part, kept)


def _draw(scaled: Tensor, rows: Tensor, params: SamplingTensors) -> Tensor:
    """The token with the highest scaled logit plus noise, of scaled [R, V] whose highest is 0."""
    if params.key is None or params.position is None:
        raise ValueError("params.temperature is above 0 in some row; give params.key and position")
    keys, positions = params.key[rows], params.position[rows]
    blocks = scaled.view(scaled.shape[0], -1, 4)
    index = (blocks.amax(dim=2) >= -GUMBEL_SPAN).nonzero(as_tuple=True)
    of_row, block = index
    scores = blocks[index] + gumbel(sampling_bits(keys[of_row], positions[of_row], block))
    blocks.fill_(-torch.inf)
    blocks[index] = scores
    return scaled.argmax(dim=1)


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    rows, vocab = logits.shape
    ids = torch.empty(rows, 1 + num_top, dtype=torch.int32)
    logprobs = torch.empty(rows, 1 + num_top, dtype=torch.float32)
    step = max(1, LOGPROB_BYTES // (4 * vocab))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        chosen = torch.cat(
            (token_ids[part].long().unsqueeze(1), _best_ids(logits[part], num_top)), dim=1
        )
        ids[part] = chosen
        logprobs[part] = logits[part].log_softmax(dim=1).gather(1, chosen)
    return ids, logprobs


def _best_ids(logits: Tensor, count: int) -> Tensor:
    """The best ``count`` ids of each row, by (logit falling, id rising)."""
    if count == 0:
        return torch.empty(logits.shape[0], 0, dtype=torch.int64)
    values, ids = logits.topk(count, dim=1)
    last = values[:, -1:]
    equal = logits == last
    tied = (equal.sum(1) > (values == last).sum(1)).nonzero().view(-1)
    if tied.shape[0]:  # the selection is free to take any of the equals at its end
        among = equal.index_select(0, tied)
        room = (values[tied] == last[tied]).sum(1, keepdim=True)
        kept = (logits[tied] > last[tied]) | (among & (among.cumsum(1) <= room))
        ids[tied] = kept.nonzero()[:, 1].view(-1, count)
    ids = ids.sort(dim=1).values
    order = logits.gather(1, ids).sort(dim=1, descending=True, stable=True).indices
    return ids.gather(1, order)

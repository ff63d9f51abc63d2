"""Plain float32 torch for every public function: the oracle that backends are tested against.

Written for reading, not for speed: loops over rows, heads and tokens, no tricks, and no code shared
with a backend (save the Philox generator, which is pinned by the known answers of its paper). Each
function has the arguments and the meaning of the public one of the same name; arithmetic is in
float32, and results are rounded to the storage type once, at the end.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from kernels.linears import LinearWeight
from kernels.philox import sampling_bits
from kernels.step_reference import (
    commit_tokens as commit_tokens,
)
from kernels.step_reference import (
    count_tokens as count_tokens,
)
from kernels.step_reference import (
    gather_step as gather_step,
)
from kernels.step_reference import (
    write_rows as write_rows,
)
from kernels.types import PLAIN, AttentionFeatures, AttentionMetadata, SampleOutput, SamplingTensors


def embedding(
    token_ids: Tensor,
    table: Tensor,
    *,
    positions: Tensor | None = None,
    position_table: Tensor | None = None,
) -> Tensor:
    rows = []
    for index, token_id in enumerate(token_ids.tolist()):
        row = table[token_id].float()
        if positions is not None and position_table is not None:
            row = row + position_table[int(positions[index])].float()
        rows.append(row)
    return torch.stack(rows).to(table.dtype) if rows else table.new_empty((0, table.shape[1]))


def _add(x: Tensor, residual: Tensor | None) -> Tensor:
    return x if residual is None else (x.float() + residual.float()).to(x.dtype)


def add_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    epsilon: float,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    total = _add(x, residual)
    weight = torch.ones(x.shape[1]) if weight is None else weight
    return _rms_norm(total, weight, epsilon, weight_offset), total


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    *,
    weight_offset: float = 0.0,
    heads: int = 1,
) -> tuple[Tensor, Tensor]:
    total = _add(x, residual)
    values = total.float().reshape(-1, heads, total.shape[1] // heads)
    centred = values - values.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    normed = centred / torch.sqrt(variance + epsilon)
    if weight is not None:
        normed = normed * (weight_offset + weight.float())
    if bias is not None:
        normed = normed + bias.float()
    return normed.flatten(1).to(x.dtype), total


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float, weight_offset: float) -> Tensor:
    values = x.float()
    mean_square = (values * values).mean(dim=-1, keepdim=True)
    factor = weight_offset + weight.float()
    return (values / torch.sqrt(mean_square + epsilon) * factor).to(x.dtype)


def quantise_heads(heads: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Numbers [H, hd] in int8 or float8_e4m3fn, and the scale of each head [H] float32."""
    largest = 127.0 if dtype is torch.int8 else 448.0
    values = heads.float()
    scales = values.abs().amax(dim=1) / largest
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    numbers = values / scales.unsqueeze(1)
    if dtype is torch.int8:
        numbers = numbers.round().clamp(-127, 127)
    return numbers.clamp(-largest, largest).to(dtype), scales


def rotate(vector: Tensor, cos_sin_row: Tensor, interleaved: bool) -> Tensor:
    """One head [head_dim] turned by one row of the table: first ``dim`` channels only."""
    half = cos_sin_row.shape[0] // 2
    out = vector.float().clone()
    for pair in range(half):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
        cos, sin = cos_sin_row[pair], cos_sin_row[half + pair]
        a, b = vector[first].float(), vector[second].float()
        out[first] = a * cos - b * sin
        out[second] = b * cos + a * sin
    return out.to(vector.dtype)


def _turn_all(q: Tensor, k: Tensor, rows: Tensor, interleaved: bool) -> None:
    """Each head of each token by the token's row of the table."""
    for heads in (q, k):
        for token, row in enumerate(rows):
            for head in range(heads.shape[1]):
                heads[token, head] = rotate(heads[token, head], row, interleaved)


def rotary_store_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache_layer: Tensor,
    slot_mapping: Tensor,
    *,
    positions: Tensor | None = None,
    cos_sin: Tensor | None = None,
    interleaved: bool = False,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_epsilon: float = 1e-6,
    norm_weight_offset: float = 0.0,
    norm_after_turn: bool = False,
    kv_scales: Tensor | None = None,
) -> None:
    def normalise() -> None:
        for heads, weight in ((q, q_norm), (k, k_norm)):
            if weight is not None:
                heads.copy_(_rms_norm(heads, weight, norm_epsilon, norm_weight_offset))

    if not norm_after_turn:
        normalise()
    if cos_sin is not None and positions is not None:
        _turn_all(q, k, cos_sin[positions], interleaved)
    if norm_after_turn:
        normalise()
    block_size = cache_layer.shape[3]
    for token, slot in enumerate(slot_mapping.tolist()):
        block, offset = divmod(slot, block_size)
        for half, heads in enumerate((k, v)):
            numbers = heads[token]
            if kv_scales is not None:
                numbers, scales = quantise_heads(numbers, cache_layer.dtype)
                kv_scales[block, half, :, offset] = scales
            cache_layer[block, half, :, offset] = numbers.to(cache_layer.dtype)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    features: AttentionFeatures = PLAIN,
    distances: Tensor | None = None,
) -> Tensor:
    """One query token [Hq, hd] over a whole context [n, Hkv, hd].

    ``distances`` [n] are key positions minus the query's, for ALiBi.
    """
    group = q.shape[0] // k.shape[1]
    out = torch.empty_like(q, dtype=torch.float32)
    for head in range(q.shape[0]):
        keys, values = k[:, head // group].float(), v[:, head // group].float()
        scores = keys @ q[head].float() * scale
        if features.soft_cap:
            scores = features.soft_cap * torch.tanh(scores / features.soft_cap)
        if features.alibi_slopes is not None and distances is not None:
            scores = scores + features.alibi_slopes[head] * distances
        if features.sinks is not None:
            scores = torch.cat((scores, features.sinks[head : head + 1]))
        weights = torch.softmax(scores, dim=0)[: keys.shape[0]]
        out[head] = weights @ values
    return out.to(q.dtype)


def paged_attention(
    q: Tensor,
    cache_layer: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    features: AttentionFeatures = PLAIN,
    kv_scales: Tensor | None = None,
) -> Tensor:
    block_size = cache_layer.shape[3]
    out = torch.empty_like(q)
    starts = metadata.query_start_loc.tolist()
    for row, seq_len in enumerate(metadata.seq_lens.tolist()):
        first, last = starts[row], starts[row + 1]
        earliest = seq_len - (last - first) + 1  # keys that the first token could see
        oldest = max(0, earliest - features.window) if features.window else 0
        slots = torch.arange(oldest, seq_len)
        blocks = metadata.block_tables[row, slots // block_size].long()
        context = cache_layer[blocks, :, :, slots % block_size].float()  # [slots, 2, Hkv, hd]
        if kv_scales is not None:
            context = context * kv_scales[blocks, :, :, slots % block_size].unsqueeze(-1)
        for token in range(first, last):
            visible = seq_len - (last - 1 - token)
            begin = max(0, visible - features.window) if features.window else 0
            seen = slice(begin - oldest, visible - oldest)
            distances = (slots[seen] - (visible - 1)).float()
            out[token] = attend(
                q[token], context[seen, 0], context[seen, 1], scale, features, distances
            )
    return out


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    causal: bool,
    scale: float,
    features: AttentionFeatures = PLAIN,
) -> Tensor:
    out = torch.empty_like(q)
    bounds = cu_seqlens.tolist()
    for first, last in itertools.pairwise(bounds):
        for token in range(first, last):
            begin, end = first, token + 1 if causal else last
            if features.window:
                begin = max(begin, token - features.window + 1)
                end = min(end, token + features.window)
            distances = (torch.arange(begin, end) - token).float()
            out[token] = attend(q[token], k[begin:end], v[begin:end], scale, features, distances)
    return out


def _activate(x: Tensor, kind: str) -> Tensor:
    return activation(x, kind)


def activation(x: Tensor, kind: str) -> Tensor:
    values = x.float()
    if kind == "silu":
        out = values / (1 + torch.exp(-values))
    elif kind == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)
        out = 0.5 * values * (1 + torch.tanh(inner))
    elif kind == "gelu_erf":
        out = 0.5 * values * (1 + torch.erf(values / math.sqrt(2)))
    elif kind == "relu":
        out = values.clamp(min=0)
    elif kind == "relu2":
        out = values.clamp(min=0) ** 2
    else:
        raise ValueError(f"kind is {kind!r}")
    return out.to(x.dtype)


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, epsilon: Tensor) -> Tensor:
    values, (p, n) = x.double(), (torch.log1p(alpha.double().exp()) for alpha in (alpha_p, alpha_n))
    above = p * values**2 + beta.double() * values
    bounded = torch.minimum(values, epsilon.double())
    below = (beta.double() + n) * (torch.expm1(bounded) - values) + beta.double() * values
    return torch.where(values > 0, above, below).to(x.dtype)


def gated_activation(x: Tensor, kind: str) -> Tensor:
    half = x.shape[1] // 2
    return (activation(x[:, :half].float(), kind) * x[:, half:].float()).to(x.dtype)


def weight_values(weight: LinearWeight) -> Tensor:
    """The float32 values [out, in] of a packed weight: in a quantised format, number * scale.

    int4: input channel k is in tile k // (2 g), there in the low nibbles if its place is below g.
    """
    if weight.scales is None:
        return weight.weight.float()
    if weight.format != "int4":
        return weight.weight.float() * weight.scales[:, None]
    group = weight.weight.shape[2]
    columns = []
    for channel in range(weight.in_features):
        tile, place = divmod(channel, 2 * group)
        half, byte = divmod(place, group)
        nibble = weight.weight[tile, :, byte].int() // 16**half % 16
        columns.append((nibble - 8).float() * weight.scales[tile, :, half].float())
    return torch.stack(columns, dim=1)


def linear(
    x: Tensor,
    weight: LinearWeight,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    out = x.float() @ weight_values(weight).T
    if weight.bias is not None:
        out = out + weight.bias.float()
    if activation is not None:
        out = _activate(out, activation)
    if residual is not None:
        out = out + residual.float()
    return out.to(x.dtype)


def copy_blocks(cache: Tensor, sources: Tensor, destinations: Tensor) -> None:
    before = [cache[:, block].clone() for block in sources.tolist()]
    for block, content in zip(destinations.tolist(), before, strict=True):
        cache[:, block] = content


def gather_blocks(cache: Tensor, sources: Tensor, out: Tensor) -> None:
    for index, block in enumerate(sources.tolist()):
        out[:, index] = cache[:, block]


def scatter_blocks(cache: Tensor, destinations: Tensor, blocks: Tensor) -> None:
    for index, block in enumerate(destinations.tolist()):
        cache[:, block] = blocks[:, index]


def gumbel(key: int, position: int, token_id: int) -> float:
    """-log(-log(u)) with u = (bits + 1/2) / 2**32, in float64, then rounded to float32.

    ``bits`` are word token_id % 4 of Philox at counter (token_id // 4, 0, position low, position
    high) and key (low, high). u is never 0 or 1, so the value lies in -3.14 .. 22.88.
    """
    u = (sampling_bits(key, position, token_id) + 0.5) / 2.0**32
    return -math.log(-math.log(u))


def _logits_of_row(logits: Tensor, params: SamplingTensors, row: int) -> Tensor:
    """Penalties, bias, forbidden tokens and bitmask, in that order, on one row [V]."""
    out = logits[row].clone()
    counts = None if params.output_counts is None else params.output_counts[row]
    if params.repetition is not None and counts is not None and params.prompt_mask is not None:
        penalty = params.repetition[row]
        penalised = torch.where(out > 0, out / penalty, out * penalty)
        out = torch.where((counts > 0) | params.prompt_mask[row], penalised, out)
    if params.frequency is not None and counts is not None:
        out = out - params.frequency[row] * counts.float()
    if params.presence is not None and counts is not None:
        out = out - params.presence[row] * (counts > 0).float()
    if params.bias is not None:
        mine = params.bias.rows == row
        for token, value in zip(params.bias.ids[mine], params.bias.values[mine], strict=True):
            out[token] = out[token] + value
    if params.forbidden is not None:
        out[params.forbidden.ids[params.forbidden.rows == row]] = -math.inf
    if params.bitmask is not None:
        words = params.bitmask[row].tolist()
        for token in range(out.shape[0]):
            if not words[token // 32] >> (token % 32) & 1:
                out[token] = -math.inf
    return out


def _kept(scaled: Tensor, top_k: int, top_p: float, min_p: float) -> list[int]:
    """Token ids that a row may choose: min_p, then the best top_k, then the top_p prefix."""
    values = scaled.tolist()  # the highest is 0
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    kept = [token for token in order if min_p <= 0 or values[token] >= math.log(min_p)]
    kept = kept[:top_k] if top_k > 0 else kept
    kept = [token for token in kept if values[token] > -math.inf]
    if top_p < 1:
        weights = [math.exp(values[token]) for token in kept]
        needed, mass = top_p * math.fsum(weights), 0.0
        for count, weight in enumerate(weights, start=1):
            mass += weight
            if mass >= needed:
                return kept[:count]
    return kept


def sample(logits: Tensor, params: SamplingTensors) -> SampleOutput:
    token_ids, non_finite = [], []
    for row in range(logits.shape[0]):
        processed = _logits_of_row(logits, params, row)
        bad = not bool(torch.isfinite(logits[row]).all()) or not math.isfinite(
            float(processed.max())
        )
        non_finite.append(bad)
        temperature = float(params.temperature[row])
        if bad or temperature == 0:
            token_ids.append(0 if bad else int(processed.argmax()))
            continue
        if params.key is None or params.position is None:
            raise ValueError("a row with a temperature above 0 needs key and position")
        scaled = (processed - processed.max()) / params.temperature[row]
        kept = _kept(
            scaled,
            0 if params.top_k is None else int(params.top_k[row]),
            1.0 if params.top_p is None else float(params.top_p[row]),
            0.0 if params.min_p is None else float(params.min_p[row]),
        )
        key, position = int(params.key[row]), int(params.position[row])
        noise = torch.tensor([gumbel(key, position, t) for t in kept], dtype=torch.float32)
        scores = scaled[kept] + noise
        token_ids.append(min(t for t, s in zip(kept, scores, strict=True) if s == scores.max()))
    device = logits.device
    return SampleOutput(
        torch.tensor(token_ids, dtype=torch.int64, device=device),
        torch.tensor(non_finite, dtype=torch.bool, device=device),
    )


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    ids = torch.empty(logits.shape[0], 1 + num_top, dtype=torch.int32)
    logprobs = torch.empty(logits.shape[0], 1 + num_top, dtype=torch.float32)
    for row in range(logits.shape[0]):
        values = torch.log_softmax(logits[row].float(), dim=0)
        raw = logits[row].tolist()
        order = sorted(range(len(raw)), key=lambda token: (-raw[token], token))
        chosen = [int(token_ids[row]), *order[:num_top]]
        ids[row] = torch.tensor(chosen, dtype=torch.int32)
        logprobs[row] = values[chosen]
    return ids, logprobs

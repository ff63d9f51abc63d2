"""What-if: the same plan at other formats, cache formats and numbers of devices."""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.errors import StartupError
from server.memory.planner.planner import size_memory
from server.plan_cli.capacity import at_length
from server.plan_cli.make import NARROW_KV, RANKS, Plan, can_share
from weights.formats import FORMATS, QUANTISED, get_format


@dataclass(frozen=True, slots=True)
class Cell:
    """``held`` is how many sequences of ``length`` tokens the cache holds at once: None where it
    does not fit, and where the heads cannot be shared by so many ranks (``possible`` is false)."""

    weights: str
    kv: str
    ranks: int
    length: int
    possible: bool
    held: int | None

    @property
    def fits(self) -> bool:
        return self.held is not None


def what_if(plan: Plan) -> list[Cell]:
    """Formats of weights by formats of the cache by ranks, each planned for the same length."""
    length = plan.memory.max_model_len
    return [
        _cell(plan, weights, kv, ranks, length) for weights, kv in _formats(plan) for ranks in RANKS
    ]


def _formats(plan: Plan) -> list[tuple[str, str]]:
    """(of the weights, of the cache): the plan's own first."""
    model, plain = plan.config.model, plan.config.model.format
    own = (model.quantization or plain, plan.config.cache.format)
    backend = plan.target.placement.backend
    if not backend.own_memory:
        at_load = [(name, plain) for name in backend.quantisations]
        pairs = [("f32", "f32"), ("bf16", "bf16"), *at_load]
        narrow_kv = [format for format in backend.kv_formats if format in QUANTISED]
        pairs += [(weights, kv) for weights in (own[0], *backend.quantisations) for kv in narrow_kv]
        return list(dict.fromkeys((own, *pairs)))
    narrow = plain if get_format(plain).bytes_per_element == 2 else "bf16"
    plains = dict.fromkeys((plain, narrow))
    pairs = [(weights, kv) for weights in plains for kv in (weights, NARROW_KV)]
    pairs += [(weights, kv) for weights in backend.quantisations for kv in (plain, NARROW_KV)]
    return list(dict.fromkeys((own, *pairs)))


def _cell(plan: Plan, weights: str, kv: str, ranks: int, length: int) -> Cell:
    spec, available = plan.model.spec, plan.target.placement.available
    if not can_share(spec, ranks):
        return Cell(weights, kv, ranks, length, possible=False, held=None)
    quantised = weights in QUANTISED
    format = plan.config.model.format if quantised else weights
    args = replace(
        plan.args,
        dtype=FORMATS[format].torch_name,
        quantization=weights if quantised else None,
        kv_cache_dtype=kv,
        ranks=ranks,
        max_model_len=length,
        whole_load=False,  # the table tells how many are held, be they fewer than asked
    )
    try:
        memory = size_memory(spec, args, available)
    except StartupError:
        return Cell(weights, kv, ranks, length, possible=True, held=None)
    return Cell(weights, kv, ranks, length, possible=True, held=at_length(memory, length).held)

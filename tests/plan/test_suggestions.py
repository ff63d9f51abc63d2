"""What does not fit is refused with the part that broke the budget, and two changes that fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.errors import StartupError
from server.memory.layout import MemoryKind
from server.memory.plan_request import PlanRequest
from server.memory.planner import DoesNotFit, changes_that_fit, plan_memory, size_memory
from server.memory.suggestions import Change, largest_that, smallest_changes
from weights.presets import find_preset
from weights.tiny_specs import tiny_llama

MIB, GIB = 2**20, 2**30
GPU = PlanRequest("bf16", 64, 64, 2048, on_gpu=True)
CPU = PlanRequest("f32", 16, 8, 128)
LLAMA_8B = find_preset("llama-3.1-8b").spec


def refusal(spec, request: PlanRequest, available: int) -> DoesNotFit:  # type: ignore[no-untyped-def]
    with pytest.raises(DoesNotFit) as raised:
        size_memory(spec, request, available)
    return raised.value


def test_the_refusal_names_the_component_and_by_how_much() -> None:
    refused = refusal(LLAMA_8B, GPU, 12 * GIB)
    assert refused.kind is MemoryKind.WEIGHTS
    assert refused.nbytes == 2 * 8_030_261_248
    fitting = size_memory(LLAMA_8B, replace(GPU, max_model_len=64), 12 * GIB + refused.over + GIB)
    beside = sum(n for kind, n in fitting.kinds.items() if kind != "kv_cache")
    assert refused.over > refused.nbytes - 12 * GIB and beside < 12 * GIB + refused.over


@pytest.mark.parametrize("available", [6 * GIB, 9 * GIB, 12 * GIB, 15 * GIB, 17 * GIB])
def test_both_changes_fit_when_planned_again_and_the_smaller_one_is_first(available: int) -> None:
    request = replace(GPU, max_model_len=131072)
    changes = changes_that_fit(LLAMA_8B, request, available, refusal(LLAMA_8B, request, available))
    assert len(changes) == 2
    assert len({change.option for change in changes}) == 2
    for change in changes:
        size_memory(LLAMA_8B, change.request, change.available_bytes)
    in_memory = [change.option.endswith("more memory") for change in changes]
    assert in_memory != [True, False]
    assert changes[0].factor <= changes[1].factor or in_memory == [False, True]


def test_the_change_is_the_smallest_one_of_its_kind() -> None:
    """A block more than the length that is offered, a MiB less than the memory, do not fit."""
    request = replace(GPU, max_model_len=131072)
    available = 24 * GIB
    first, _ = changes_that_fit(LLAMA_8B, request, available, refusal(LLAMA_8B, request, available))
    assert first.option.startswith("--max-model-len ")
    length = first.request.max_model_len
    assert length is not None
    refusal(LLAMA_8B, replace(request, max_model_len=length + 64), available)


def test_two_options_together_come_before_more_memory() -> None:
    request = replace(GPU, max_model_len=131072)
    changes = changes_that_fit(LLAMA_8B, request, 9 * GIB, refusal(LLAMA_8B, request, 9 * GIB))
    assert [change.option.rsplit(None, 1)[0] for change in changes] == [
        "--quantization int4 with --max-model-len",
        "--quantization int8 with --max-model-len",
    ]


def test_where_no_option_helps_the_memory_that_is_missing_is_told() -> None:
    request = replace(GPU, quantization="int4")
    changes = changes_that_fit(LLAMA_8B, request, GIB, refusal(LLAMA_8B, request, GIB))
    assert [change.option.split()[-2:] for change in changes] == [["more", "memory"]] * 2
    needed = changes[0].available_bytes
    assert changes[0].request == request
    size_memory(LLAMA_8B, request, needed)
    refusal(LLAMA_8B, request, needed - MIB)


@pytest.mark.parametrize("name", ["qwen2.5-7b", "gpt-2-xl"])
def test_on_a_cpu_what_fits_takes_no_more_than_there_is(name: str) -> None:
    """A step's intermediates depend on the pool and the length, whose sizes depend on them."""
    spec, request = find_preset(name).spec, PlanRequest("f32", 16, 32, 512)
    fitting = 0
    for available in range(4 * GIB, 40 * GIB, 97 * MIB):
        try:
            plan = size_memory(spec, request, available)
        except DoesNotFit as refused:
            assert refused.over > 0
            continue
        fitting += 1
        assert sum(plan.kinds.values()) <= available
    assert fitting > 50


def test_a_start_prints_both() -> None:
    with pytest.raises(StartupError) as raised:
        plan_memory(LLAMA_8B, GPU, 12 * GIB)
    message = str(raised.value)
    assert "weights take 14.96 GiB of 12.00 GiB available" in message
    assert "; what would fit: --quantization int8 or " in message


def test_a_cpu_is_offered_no_quantisation_and_no_other_device() -> None:
    spec = tiny_llama(num_layers=40, hidden_size=256, num_query_heads=8, intermediate_size=1024)
    changes = changes_that_fit(spec, CPU, 100 * MIB, refusal(spec, CPU, 100 * MIB))
    assert changes[0].option == "--dtype bfloat16"
    assert "quantization" not in "".join(change.option for change in changes)


def test_of_a_group_the_first_that_fits_is_told_and_groups_are_ordered_by_size() -> None:
    def change(option: str, factor: float) -> Change:
        return Change(option, replace(GPU, max_num_seqs=len(option)), GIB, factor)

    def fits(request: PlanRequest, available: int) -> bool:
        return request.max_num_seqs in (3, 4) and request.max_model_len is None

    groups = [[change("a", 1.5), change("aaa", 3.0), change("aaaa", 4.0)], [change("bbb", 2.0)]]
    found = smallest_changes(GPU, GIB, fits, max_model_len=64, more=groups)
    assert [c.option for c in found] == ["bbb", "aaa"]


@pytest.mark.parametrize(("least", "most", "step"), [(1, 1000, 1), (16, 1000, 16), (1, 63, 64)])
def test_the_largest_value_is_found(least: int, most: int, step: int) -> None:
    for limit in (0, 1, 15, 16, 100, 999, 5000):
        values = [n for n in range(least, most + 1) if n % step == 0 and n <= limit]
        assert largest_that(lambda n, limit=limit: n <= limit, least, most, step) == max(
            values, default=None
        )

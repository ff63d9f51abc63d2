"""What does not fit is refused with the part that broke the budget, and two changes that fit."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace

import pytest

import server.memory.backends.torch_cpu.parts as parts
from server.config.options import OPTIONS
from server.errors import StartupError
from server.memory.engine_args import EngineArgs
from server.memory.kinds import MemoryKind
from server.memory.planner.plan import DoesNotFit
from server.memory.planner.planner import changes_that_fit, plan_memory, size_memory
from server.memory.planner.resolve_args import resolve_engine
from server.memory.planner.suggestions import Change, largest_that, smallest_changes
from server.plan_cli.command import plan_options
from server.plan_cli.make import Plan, make_plan
from server.plan_cli.options import add_arguments
from tests.plan.plans import plan
from weights.presets import find_preset, read_presets
from weights.synthetic.tiny_specs import tiny_llama

MIB, GIB = 2**20, 2**30
GPU = EngineArgs(
    device="cuda", dtype="bfloat16", block_size=64, max_num_seqs=64, max_num_batched_tokens=2048
)
CPU = EngineArgs(
    device="cpu", dtype="float32", block_size=16, max_num_seqs=8, max_num_batched_tokens=128
)
LLAMA_8B = find_preset("llama-3.1-8b").spec


def refusal(spec, request: EngineArgs, available: int) -> DoesNotFit:  # type: ignore[no-untyped-def]
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
        size_memory(LLAMA_8B, change.args, change.available_bytes)
    in_memory = [change.option.endswith("more memory") for change in changes]
    assert in_memory != [True, False]
    assert changes[0].factor <= changes[1].factor or in_memory == [False, True]


def test_the_change_is_the_smallest_one_of_its_kind() -> None:
    """A block more than the length that is offered, a MiB less than the memory, do not fit."""
    request = replace(GPU, max_model_len=131072)
    available = 24 * GIB
    first, _ = changes_that_fit(LLAMA_8B, request, available, refusal(LLAMA_8B, request, available))
    assert first.option.startswith("--max-model-len ")
    length = first.args.max_model_len
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
    assert changes[0].args == request
    size_memory(LLAMA_8B, request, needed)
    refusal(LLAMA_8B, request, needed - MIB)


@pytest.mark.parametrize("name", ["qwen2.5-7b", "gpt-2-xl"])
def test_on_a_cpu_what_fits_takes_no_more_than_there_is(name: str) -> None:
    """A step's intermediates depend on the pool and the length, whose sizes depend on them."""
    spec, request = find_preset(name).spec, EngineArgs(device="cpu", dtype="float32")
    fitting = 0
    for available in range(4 * GIB, 40 * GIB, 97 * MIB):
        try:
            sized = size_memory(spec, request, available)
        except DoesNotFit as refused:
            assert refused.over > 0
            continue
        fitting += 1
        assert sum(sized.kinds.values()) <= available
    assert fitting > 50


def test_a_start_prints_both() -> None:
    with pytest.raises(StartupError) as raised:
        plan_memory(LLAMA_8B, GPU, 12 * GIB)
    message = str(raised.value)
    assert "weights take 14.96 GiB of 12.00 GiB available" in message
    assert "; what would fit: --quantization int8 or " in message


def test_a_cpu_is_offered_what_its_backend_serves_and_no_other_device() -> None:
    spec = tiny_llama(num_layers=40, hidden_size=256, num_query_heads=8, intermediate_size=1024)
    of_torch = replace(CPU, backend="torch")
    changes = changes_that_fit(spec, of_torch, 100 * MIB, refusal(spec, of_torch, 100 * MIB))
    assert changes[0].option == "--dtype bfloat16"
    assert "quantization" not in "".join(change.option for change in changes)
    native = replace(CPU, backend="native")
    changes = changes_that_fit(spec, native, 100 * MIB, refusal(spec, native, 100 * MIB))
    options = [change.option for change in changes]
    assert options == ["--dtype bfloat16", "--quantization int8"]


def asked_again(model: str, device: str, flags: dict[str, str], change: str) -> Plan:
    """The plan with what a change says put on the command line, in place of what it replaces."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = {"--device": device, **{f"--{name}": value for name, value in flags.items()}}
    words = change.replace(" with ", " ").split()
    given.update(zip(words[::2], words[1::2], strict=True))
    parsed = parser.parse_args([model, *(word for pair in given.items() for word in pair)])
    return make_plan(plan_options(parsed), {})


def hold_both_changes(model: str, device: str, flags: dict[str, str]) -> None:
    try:
        refused = plan(model, device, **flags)
    except StartupError as error:  # more rows of so long sequences than a GPU can number
        assert "what would fit: --max-model-len" in str(error) and "4096" in str(error)
        return
    if refused.fits:
        return
    options = [change.option for change in refused.changes]
    assert len(set(options)) == 2, (model, device, options)
    for option in options:
        assert asked_again(model, device, flags, option).fits, (model, device, option)


TIGHT: tuple[dict[str, str], ...] = (
    {},
    {"kv-cache-memory": "1KiB"},
    {"max-num-seqs": "4096", "dtype": "float32"},
    {"quantization": "int4", "kv-cache-memory": "1KiB"},
)
LOADS: tuple[dict[str, str], ...] = (
    {"max-model-len": "512", "max-num-seqs": "2048"},
    {"kv-cache-memory": "500GiB"},
    {"kv-cache-memory": "500GiB", "max-model-len": "512", "max-num-seqs": "2048"},
)


@pytest.mark.parametrize("flags", TIGHT, ids=["as is", "no cache", "many", "narrow"])
@pytest.mark.parametrize("device", ["1GiB", "l4"])
@pytest.mark.parametrize("model", ["gpt-2-xl", "llama-3.1-8b", "mixtral-8x22b", "gemma-3-27b"])
def test_both_changes_fit_when_they_are_typed(
    model: str, device: str, flags: dict[str, str]
) -> None:
    hold_both_changes(model, device, flags)


@pytest.mark.parametrize("flags", LOADS, ids=["load", "vast cache", "both"])
@pytest.mark.parametrize("device", ["l4", "h100"])
def test_changes_to_a_load_that_was_asked_fit_when_they_are_typed(
    device: str, flags: dict[str, str]
) -> None:
    hold_both_changes("llama-3.1-8b", device, flags)


# Every preset is tried with all of these by the sweep, and with every fifth by `make test-slow`,
# where the first is another one for the next preset.
DEVICES_AND_FLAGS = (
    *itertools.product(
        ("1GiB", "3GiB", "24GiB", "h100", "h200"), (*TIGHT, {"max-model-len": "512"})
    ),
    *(("h100", flags) for flags in LOADS),
)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "model"), [*enumerate(read_presets())])
def test_both_changes_fit_when_they_are_typed_for_every_preset(first: int, model: str) -> None:
    for device, flags in DEVICES_AND_FLAGS[first % 5 :: 5]:
        hold_both_changes(model, device, flags)


@pytest.mark.sweep
@pytest.mark.parametrize("model", read_presets())
def test_all_changes_fit_when_they_are_typed_for_every_preset(model: str) -> None:
    for device, flags in DEVICES_AND_FLAGS:
        hold_both_changes(model, device, flags)


def test_a_length_that_is_offered_beside_a_number_that_was_given_fits_them_all() -> None:
    """Typed, the two together are a load."""
    hold_both_changes("llama-3.1-70b", "h100", {"max-num-seqs": "4096", "dtype": "float32"})


@pytest.mark.parametrize("cache", ["auto", "1KiB"])
def test_on_this_machine_the_missing_memory_is_enough(
    cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_free(free: float, cache: str) -> Plan:
        monkeypatch.setattr(parts, "machine_memory", lambda: (512 * GIB, int(free * GIB)))
        return plan("mixtral-8x22b", "cpu", kv_cache_memory=cache)

    options = [change.option for change in with_free(8, cache).changes]
    assert len(options) == 2
    assert options[0].startswith("--kv-cache-memory auto with ") == (cache == "1KiB")
    missing, unit, more = options[0].rsplit(None, 4)[-4:-1]
    assert (unit, more) == ("GiB", "more")
    assert with_free(8 + float(missing), "auto").fits
    assert not with_free(8 + float(missing) - 0.02, "auto").fits


def test_a_device_by_its_size_is_the_smallest_of_whole_gib() -> None:
    refused = plan("gpt-2-xl", "1GiB")
    device, gib = refused.changes[1].option.removesuffix("GiB").split()
    assert device == "--device"
    for size, fits in ((gib, True), (str(int(gib) - 1), False)):
        assert plan("gpt-2-xl", f"{size}GiB").fits is fits


@pytest.mark.parametrize("model", ["gpt-3", "llama-3.1-70b", "mixtral-8x22b"])
@pytest.mark.parametrize("device", ["24GiB", "l4", "h200"])
@pytest.mark.parametrize("load", [{}, {"max-model-len": "2048", "max-num-seqs": "512"}])
def test_nothing_is_offered_that_the_server_does_not_have(
    model: str, device: str, load: dict[str, str]
) -> None:
    """Several devices are in the what-if table, as a GPU's narrower cache is, and nobody can serve
    so."""
    refused = plan(model, device, **load)
    options = {option.name for option in OPTIONS}
    flags = [
        word.removeprefix("--")
        for change in refused.changes
        for word in change.option.split()
        if word.startswith("--")
    ]
    assert set(flags) <= options and (flags or refused.fits)


def test_a_narrower_cache_is_offered_where_it_is_served() -> None:
    asked = EngineArgs(
        device="cpu",
        backend="native",
        dtype="bfloat16",
        quantization="int8",
        max_model_len=16384,  # 2 GiB of cache
        max_num_seqs=1,
    )
    whole = size_memory(LLAMA_8B, asked, 64 * GIB).kinds
    available = sum(whole.values()) - whole["kv_cache"] + GIB + GIB // 8
    changes = changes_that_fit(LLAMA_8B, asked, available, refusal(LLAMA_8B, asked, available))
    narrow = next(change for change in changes if change.option == "--kv-cache-dtype int8")
    assert size_memory(LLAMA_8B, narrow.args, available).config.cache.format == "int8"


def test_and_nowhere_else() -> None:
    def options(backend: str, held: str | None = None) -> list[str]:
        asked = EngineArgs(device="cpu", backend=backend, dtype="bfloat16", kv_cache_dtype=held)
        now = resolve_engine(asked, LLAMA_8B, 8192)
        changes = smallest_changes(
            asked, GIB, lambda args, _: args.kv_cache_dtype not in (None, held), now=now
        )
        return [change.option for change in changes]

    assert options("native") == ["--kv-cache-dtype int8"]
    assert options("native", "int8") == options("torch") == []


def test_a_cache_too_small_for_anything_hides_no_other_change() -> None:
    def options(**flags: str) -> list[str]:
        return [change.option for change in plan("llama-2-70b", "h100", **flags).changes]

    lifted = [f"--kv-cache-memory auto with {option}" for option in options()]
    assert options(kv_cache_memory="1KiB") == lifted
    assert "--device h200" in lifted[0]


def test_ranks_need_not_be_a_power_of_two() -> None:
    assert not plan("gpt-3", ranks=2).fits
    assert plan("gpt-3", ranks=3).fits


def test_of_a_group_the_first_that_fits_is_told_and_groups_are_ordered_by_size() -> None:
    def change(option: str, factor: float) -> Change:
        return Change(option, replace(GPU, max_num_seqs=len(option)), GIB, factor)

    def fits(args: EngineArgs, available: int) -> bool:
        return args.max_num_seqs in (3, 4) and args.max_model_len is None

    groups = [[change("a", 1.5), change("aaa", 3.0), change("aaaa", 4.0)], [change("bbb", 2.0)]]
    now = resolve_engine(GPU, LLAMA_8B, 64)
    found = smallest_changes(GPU, GIB, fits, now=now, more=groups)
    assert [c.option for c in found] == ["bbb", "aaa"]


@pytest.mark.parametrize(("least", "most", "step"), [(1, 1000, 1), (16, 1000, 16), (1, 63, 64)])
def test_the_largest_value_is_found(least: int, most: int, step: int) -> None:
    for limit in (0, 1, 15, 16, 100, 999, 5000):
        values = [n for n in range(least, most + 1) if n % step == 0 and n <= limit]
        assert largest_that(lambda n, limit=limit: n <= limit, least, most, step) == max(
            values, default=None
        )


def test_a_smaller_number_of_sequences_that_is_offered_counts_as_given() -> None:
    """Typed beside a length that was given, it asks for a cache that holds them all."""
    asked = replace(GPU, max_num_seqs=None, max_model_len=64, whole_load=True)
    now = resolve_engine(asked, LLAMA_8B, 64)
    found = smallest_changes(asked, GIB, lambda a, _: (a.max_num_seqs or 256) <= 8, now=now)
    (fewer,) = [change for change in found if change.option == "--max-num-seqs 8"]
    assert fewer.args.is_whole_load and not asked.is_whole_load

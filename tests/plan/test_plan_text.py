"""What a plan says to a person: words and figures that cannot be misread, and their tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.plan_cli.answer import answer
from server.plan_cli.bars import decimal
from server.plan_cli.make import PlanOptions, make_plan
from server.plan_cli.text import WIDTH, plan_text
from tests.plan.plans import plan, text_of, told
from weights.inventory import num_parameters
from weights.presets import find_preset, read_presets
from weights.shapes import shape_spec


def test_the_grid_says_what_fits_where() -> None:
    cells = {
        (cell["weights"], cell["kv"], cell["tensor_parallel_size"]): cell
        for cell in told("llama-2-70b", "h100")["what_if"]
    }
    assert not cells["f16", "f16", 1]["fits"] and cells["f16", "f16", 2]["fits"]
    assert cells["int4", "fp8", 1]["sequences"] > cells["int4", "f16", 1]["sequences"] > 0
    xl = {cell["tensor_parallel_size"]: cell for cell in told("gpt-2-xl")["what_if"]}
    assert xl[1]["possible"] and not xl[2]["possible"]  # 25 heads


def test_the_rule_of_thumb_holds_for_some_and_is_denied_for_others() -> None:
    says = told("llama-3.1-8b")["weights_share"]["says"]
    assert "11 % of the memory in use" in says and "does not hold here; kv_cache takes 8" in says
    held = told("llama-2-7b", "cpu", max_num_seqs="3", kv_cache_memory="2500MiB")
    assert "the rule of thumb of about 80 % holds here" in held["weights_share"]["says"]


WIDEST = ("gpt-3", "palm-540b", "qwen3-235b-a22b", "gemma-3-27b", "llama-3.1-405b", "phi-2")


def models_and_devices() -> Iterator[Any]:
    """The widest on both, each other preset on one, in turn, and on the other in the sweep."""
    for number, name in enumerate(read_presets()):
        devices = ("h200", "24GiB")[:: 1 if number % 2 else -1]
        marks = ((), ()) if name in WIDEST else (pytest.mark.slow, pytest.mark.sweep)
        for device, mark in zip(devices, marks, strict=True):
            yield pytest.param(name, device, marks=mark)


@pytest.mark.parametrize(("model", "device"), list(models_and_devices()))
def test_the_text_fits_100_columns(model: str, device: str) -> None:
    for line in text_of(model, device).splitlines():
        assert len(line) <= WIDTH, line


def test_a_refusal_tells_why_and_what_would_fit() -> None:
    made = plan("llama-2-70b", "h100")
    text = plan_text(made, answer(made))
    assert "does not fit" in text.splitlines()[0]
    assert "128.48 GiB of 77.05 GiB available, 53.03 GiB too much" in " ".join(text.split())
    assert "would fit  --device h200 or --quantization int8" in text


def test_the_first_line_tells_of_a_length_that_was_cut() -> None:
    def first(**flags: str) -> str:
        return " ".join(text_of("llama-3.1-8b", "l4", **flags).split()).split(" model ")[0]

    assert first().endswith(
        ": fits, with at most 39424 of 131072 tokens; of that length 1 of 256 sequences at once"
    )
    asked = first(max_model_len="512")
    assert asked.endswith(": fits; of that length 78 of 256 sequences at once")
    few = first(max_num_seqs="4", max_model_len="512")
    assert few.endswith(": fits, 4 sequences of 512 tokens at once")


def test_what_is_asked_and_does_not_fit_at_once_tells_what_a_server_would_hold() -> None:
    load = {"max_num_seqs": "64", "max_model_len": "8192"}
    text = text_of("llama-3.1-8b", "l4", **load)
    assert text.splitlines()[0].endswith(": does not fit: 64 sequences of 8192 tokens at once")
    assert "it holds 5 such sequences at once" in " ".join(text.split())
    assert "with a KV cache for 64 sequences of 8192 tokens\nmemory" in text
    planned = told("llama-3.1-8b", "l4", **load)
    assert planned["split"]["kv_cache"] == 64 * 8192 * 128 * 1024
    assert planned["refusal"]["would_start"] and planned["refusal"]["held_at_once"] == 5


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-2-70b", "gpt-2-xl"])
def test_the_rules_share_is_one_that_the_table_shows(model: str) -> None:
    text = text_of(model, "h100")
    said = re.search(
        r"weights are (\d+) % of the memory in use \((\S+ \S+)\)", " ".join(text.split())
    )
    row = re.search(r"^weights .* ([\d.]+) % +#", text, re.M)
    in_use = re.search(r"^in use +[\d,]+ +(\S+ \S+) ", text, re.M)
    if said is None or row is None or in_use is None:
        pytest.fail(text)
    assert round(float(row[1])) == int(said[1]) and in_use[1] == said[2]


def test_a_cache_with_windows_is_not_told_as_tokens_times_bytes() -> None:
    """A token behind a window takes less: the product would be several times the cache."""
    lines = " ".join(text_of("gemma-3-4b", "h200").split())
    assert "tokens in sequences of 131072, 136.00 KiB each within every window, less" in lines
    assert "tokens, 128.00 KiB each; set by" in text_of("llama-3.1-8b", "h200")


def test_several_ranks_tell_whose_each_figure_is() -> None:
    text = text_of("llama-3.1-8b", "h200", ranks=2)
    assert "census, whole model" in text
    assert "FLOPs are of all 2 ranks together, memory read is one's" in text


def test_what_does_not_fit_tells_what_the_split_is_of() -> None:
    text = text_of("llama-2-70b", "h100")
    assert "what it would take, with a KV cache for one sequence of 4096 tokens\nmemory" in text
    assert "53.03 GiB too much in all before any KV cache" in " ".join(text.split())
    assert "\n\n\n" not in text


def test_a_family_that_no_checkpoint_is_read_of_is_told(tmp_path: Path) -> None:
    shape = tmp_path / "own.toml"
    document = {**find_preset("llama-3.2-1b").document, "family": "nobody's"}
    shape.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in document.items()))
    for device in ("cpu", "l4"):
        notes = answer(make_plan(PlanOptions(None, str(shape), device, None, 1, {}), {}))["notes"]
        assert notes == ["plan only: quire serve reads no checkpoints of the family nobody's"]
    assert told("llama-3.1-8b")["notes"] == []


def test_the_grid_has_the_plans_own_formats_first() -> None:
    for model, device, kv, flags in (
        ("gpt-3", "cpu", None, {}),  # float16
        ("gpt-2-small", "h200", "int8", {"quantization": "fp8"}),
        ("gpt-2-small", "h200", None, {"dtype": "float32"}),
    ):
        facts = told(model, device, kv, **flags)
        own, request = facts["what_if"][0], facts["request"]
        held = (own["weights"], own["kv"])
        assert held == (request["quantization"] or request["format"], request["kv_format"])
        lines = facts["capacity"]["sequences"]
        assert own["sequences"] == (lines[-1]["sequences"] if lines else None)
    assert ("bf16", "bf16") in {(cell["weights"], cell["kv"]) for cell in facts["what_if"]}


def test_a_cache_that_no_server_keeps_there_is_a_what_if() -> None:
    assert told("llama-3.1-8b", "h200", "int8")["notes"] == [
        "what-if: a KV cache in int8; on a GPU the server keeps it in --dtype"
    ]
    for kv in ("int8", "float16", "bfloat16", "auto", None):
        facts = told("llama-3.2-1b", "cpu", kv)
        assert not [note for note in facts["notes"] if "KV cache" in note]
        assert facts["request"]["kv_format"] == {"float16": "f16", "int8": "int8"}.get(kv, "bf16")
    assert ("int8", "int8") in {(cell["weights"], cell["kv"]) for cell in facts["what_if"]}


def test_the_cache_is_what_the_configuration_says_unless_a_flag_does() -> None:
    variables = {"QUIRE_KV_CACHE_DTYPE": "int8"}
    for kv, format in ((None, "int8"), ("auto", "bf16"), ("float16", "f16")):
        made = make_plan(PlanOptions("llama-3.2-1b", None, "cpu", kv, 1, {}), variables)
        assert made.config.cache.format == format


def test_no_rate_is_told_where_one_side_is_unknown() -> None:
    text = text_of("gpt-2-xl", "h100", dtype="float32")
    row = next(line for line in text.splitlines() if line.startswith("prefill"))
    assert row.split()[-2:] == ["-", "-"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(5, "5"), (999.4, "999"), (999.6, "1 k"), (999_885_952, "1 G"), (4.5e15, "4,500 T")],
)
def test_numbers_for_people(number: float, text: str) -> None:
    assert decimal(number) == text


def test_the_total_of_parameters_says_how_it_is_counted() -> None:
    """GPT-3's census is the published one, with two tables; the total must not be taken for the
    published model's own when one of them is tied."""
    text = " ".join(text_of("gpt-3", "h200").split())
    assert "175,221,817,344 parameters, embedding and unembedding counted apart" in text
    assert "tied to the embedding, as in GPT-2, it would be 174,604,259,328 parameters" in text
    preset = find_preset("gpt-3")
    tied = shape_spec({**preset.document, "tied_unembedding": True}, "gpt-3 tied")
    assert f"{num_parameters(tied):,}" in preset.note
    small = " ".join(text_of("gpt-2-small", "h200").split())
    assert "parameters, tied unembedding counted once" in small

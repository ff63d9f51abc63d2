"""``quire plan`` as people and scripts run it: a real process, its output, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from server.memory.layout import MemoryKind
from server.plan.answer import answer
from server.plan.bars import decimal
from server.plan.command import listing
from server.plan.devices import DEVICES
from server.plan.make import PlanOptions, make_plan
from server.plan.text import WIDTH, plan_text
from weights.presets import read_presets
from weights.synthetic import write_checkpoint
from weights.tiny_specs import tiny_llama

SLOW = pytest.mark.slow
MOST_SECONDS = 3.0  # of a command that takes 0.3 s on an idle machine


def quire(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("QUIRE_")}
    return subprocess.run(
        [sys.executable, "-m", "server", "plan", *arguments],
        capture_output=True,
        text=True,
        env={**clean, **variables},
        timeout=60,
        check=False,
    )


def facts(model: str, device: str = "h200", explain: bool = False, **flags: str) -> dict[str, Any]:
    options = PlanOptions(model, None, device, None, 1, flags)
    return answer(make_plan(options, {}), explain=explain)


def test_gpt3_as_json_is_the_published_census_and_does_not_fit() -> None:
    done = quire("gpt-3", "--json", "--device", "h200")
    assert done.returncode == 1, done.stderr
    plan = json.loads(done.stdout)
    matrices = {
        name: (line["matrices"], line["parameters"])
        for name, line in plan["census"].items()
        if line["matrices"]
    }
    assert matrices == {
        "embedding": (1, 617_558_016),
        "key": (9_216, 14_495_514_624),
        "query": (9_216, 14_495_514_624),
        "value": (9_216, 14_495_514_624),
        "output": (96, 14_495_514_624),
        "up": (96, 57_982_058_496),
        "down": (96, 57_982_058_496),
        "unembedding": (1, 617_558_016),
    }
    assert set(plan["census"]) - set(matrices) == {"position", "norm", "bias"}
    total = {"matrices": 27_938, "parameters": 175_181_291_520, "bytes": 2 * 175_181_291_520}
    assert plan["total"] == total
    assert plan["fits"] is False and len(plan["suggestions"]) == 2


def test_it_fits_and_costs_no_torch_and_less_than_the_limit() -> None:
    program = (
        "import sys\n"
        "from server.cli import main\n"
        "code = main(['plan', 'llama-3.1-70b', '--device', 'h200', '--tp', '2', '--explain'])\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'transformers', 'fastapi'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    took = time.monotonic() - started
    print(f"quire plan took {took:.2f} s")
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert "llama-3.1-70b on h200" in done.stdout and "fits" in done.stdout.splitlines()[0]
    assert took < MOST_SECONDS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lama-3-8b",), "no preset and no folder is named 'lama-3-8b'; did you mean llama-3-8b"),
        (("gpt-3", "--device", "h300"), "--device h300: unknown; did you mean h200"),
        (("gpt-3", "--device", "24GB"), "'24GB' is not a size such as"),
        (("gpt-3", "--device", "1MiB"), "1MiB is not between 1.00 GiB and"),
        (("gpt-3", "--tp", "5"), "--tensor-parallel-size 5: 96 query heads do not divide"),
        (("gpt-3", "--tp", "two"), "'two' is not a whole number"),
        (("gpt-3", "--max-model-len", "4096", "--device", "h200"), "exceeds the model's 2048"),
        (("gpt-3", "--dtype", "int7"), "--dtype: 'int7' is not one of"),
        (("gpt-3", "--device", "cpu", "--quantization", "int8"), "needs a GPU"),
        (("gpt-3", "--kv-cache-dtype", "int2"), "invalid choice: 'int2'"),
        (("--shape", "/no/such.toml"), "/no/such.toml: No such file"),
        (("gpt-3", "--shape", "own.toml"), "gpt-3 and --shape own.toml: give one of them"),
        ((__file__,), "is a file: a shape is given with --shape"),
        (("--shpae", "own.toml"), "unrecognized arguments"),
        (("",), "MODEL is empty"),
        (("--shape", ""), "--shape is empty"),
        (("gpt-3", "--device", " "), "--device is empty"),
        (("gpt-3", "--device", "9" * 400 + "GiB"), "99... is not between 1.00 GiB and"),
        (("gpt-3", "--device", "24"), "24 (bytes) is not between 1.00 GiB and"),
        (("x" * 300,), "no preset and no folder is named"),
        (("gpt-3", "--list"), "--list plans nothing"),
    ],
)
def test_bad_input_is_named_and_exits_2(arguments: tuple[str, ...], message: str) -> None:
    done = quire(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_shape_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        "vocab_size = 1000\nhidden_size = 64\nnum_layers = 2\nnum_query_heads = 4\n"
        "intermediate_size = 128\nmax_positions = 512\nwindow = 64\n"
    )
    done = quire("--shape", str(path), "--device", "24GiB", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["model"] == "own" and plan["everything"]["parameters"] == 210_240
    assert "sliding windows" in " ".join(plan["notes"])
    path.write_text("hiden_size = 3")
    done = quire("--shape", str(path))
    assert done.returncode == 2 and "'hiden_size'; did you mean hidden_size" in done.stderr


def test_a_folder_and_the_servers_variables(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1)
    done = quire(str(tmp_path), "--device", "cpu", "--json", QUIRE_MAX_NUM_SEQS="5")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["request"]["max_num_seqs"] == 5
    (tmp_path / "config.json").write_text("{}")
    done = quire(str(tmp_path), "--device", "cpu")
    assert done.returncode == 2 and "config.json: model_type is missing" in done.stderr


def test_json_has_every_kind_and_closes() -> None:
    plan = facts("llama-3.1-8b")
    assert list(plan["split"]) == [str(kind) for kind in MemoryKind]
    assert sum(plan["split"].values()) == plan["total_bytes"]
    assert plan["estimated"] == ["allocator_slack", "runtime"]
    assert plan["fits"] and plan["suggestions"] == [] and plan["refusal"] is None
    census = sum(line["bytes"] for line in plan["census"].values())
    assert census == plan["everything"]["bytes"] == plan["split"]["weights"]
    assert "formulas" not in plan


def test_every_kind_and_line_has_a_formula_when_asked() -> None:
    plan = facts("mixtral-8x7b", explain=True)
    assert set(plan["split"]) <= set(plan["formulas"])
    assert {f"census.{name}" for name in plan["census"]} <= set(plan["formulas"])
    flops = plan["flops"]
    assert plan["formulas"]["FLOPs.decode"].endswith(f"= {flops['decode_per_token']}")
    assert plan["formulas"]["census.up"] == "256 x 14336 x 4096"
    assert plan["formulas"]["weights"].startswith("46702792704 parameters x 2 B (bf16)")


def test_the_grid_says_what_fits_where() -> None:
    cells = {
        (cell["weights"], cell["kv"], cell["tensor_parallel_size"]): cell
        for cell in facts("llama-2-70b", "h100")["what_if"]
    }
    assert not cells["f16", "f16", 1]["fits"] and cells["f16", "f16", 2]["fits"]
    assert cells["int4", "fp8", 1]["sequences"] > cells["int4", "f16", 1]["sequences"] > 0
    xl = {cell["tensor_parallel_size"]: cell for cell in facts("gpt-2-xl")["what_if"]}
    assert xl[1]["possible"] and not xl[2]["possible"]  # 25 heads


def test_the_rule_of_thumb_holds_for_some_and_is_denied_for_others() -> None:
    says = facts("llama-3.1-8b")["weights_share"]["says"]
    assert "11 % of the memory in use" in says and "does not hold here; kv_cache takes 8" in says
    held = facts("llama-2-7b", "cpu", **{"max-num-seqs": "3", "kv-cache-memory": "2500MiB"})
    assert "the rule of thumb of about 80 % holds here" in held["weights_share"]["says"]


WIDEST = ("gpt-3", "palm-540b", "qwen3-235b-a22b", "gemma-3-27b", "llama-3.1-405b", "phi-2")


@pytest.mark.parametrize(
    "model", [name if name in WIDEST else pytest.param(name, marks=SLOW) for name in read_presets()]
)
def test_the_text_fits_100_columns(model: str) -> None:
    for device in ("h200", "24GiB"):
        plan = make_plan(PlanOptions(model, None, device, None, 1, {}), {})
        for line in plan_text(plan, answer(plan, explain=True)).splitlines():
            assert len(line) <= WIDTH, line


def test_a_refusal_tells_why_and_what_would_fit() -> None:
    plan = make_plan(PlanOptions("llama-2-70b", None, "h100", None, 1, {}), {})
    text = plan_text(plan, answer(plan))
    assert "does not fit" in text.splitlines()[0]
    assert "128.48 GiB of 77.05 GiB available, 53.03 GiB too much" in " ".join(text.split())
    assert "would fit  --device h200 or --quantization int8" in text


def test_the_list_names_everything() -> None:
    text = listing()
    for name in (*read_presets(), *(device.name for device in DEVICES)):
        assert any(line.split()[0] == name for line in text.splitlines() if line)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert quire("--list").stdout.strip() == text


def test_the_list_as_json_has_the_figures() -> None:
    listed = json.loads(quire("--list", "--json").stdout)
    assert [line["preset"] for line in listed["presets"]] == list(read_presets())
    sizes = {line["name"]: line["memory_bytes"] for line in listed["devices"]}
    assert sizes == {device.name: device.memory_bytes for device in DEVICES}


def test_what_a_file_says_does_not_steer_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"a\x1b[31m\xff")
    write_checkpoint(tiny_llama(), folder, seed=1)
    done = quire(str(folder), "--device", "cpu", PYTHONIOENCODING="utf-8:strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a?[31m? on cpu") and "\x1b" not in done.stdout


def text_of(model: str, device: str, ranks: int = 1, **flags: str) -> str:
    plan = make_plan(PlanOptions(model, None, device, None, ranks, flags), {})
    return plan_text(plan, answer(plan, explain=True))


def test_the_first_line_tells_of_a_length_that_was_cut() -> None:
    first = text_of("llama-3.1-8b", "l4").splitlines()[0]
    assert first.endswith(": fits, with at most 39424 of 131072 tokens")
    asked = text_of("llama-3.1-8b", "l4", **{"max-model-len": "512"}).splitlines()[0]
    assert asked.endswith(": fits")


def test_a_cache_with_windows_is_not_told_as_tokens_times_bytes() -> None:
    """A token behind a window takes less: the product would be several times the cache."""
    lines = " ".join(text_of("gemma-3-4b", "h200").split())
    assert "tokens in sequences of 131072, 136.00 KiB each within every window, less" in lines
    assert "tokens, 128.00 KiB each; set by" in text_of("llama-3.1-8b", "h200")


def test_several_ranks_tell_whose_each_figure_is() -> None:
    text = text_of("llama-3.1-8b", "h200", 2)
    assert "census, whole model" in text
    assert "FLOPs are of all 2 ranks together, memory read is one's" in text


def test_what_does_not_fit_tells_what_the_split_is_of() -> None:
    text = text_of("llama-2-70b", "h100")
    assert "what it would take, with a KV cache for one sequence of 4096 tokens\nmemory" in text
    assert "53.03 GiB too much in all before any KV cache" in " ".join(text.split())
    assert "\n\n\n" not in text


def test_a_family_that_no_checkpoint_is_read_of_is_told() -> None:
    for device in ("cpu", "l4"):
        notes = facts("qwen2.5-7b", device)["notes"]
        assert notes == [
            "a plan alone: of families quire serve reads llama, gpt2, and this is qwen2"
        ]
    assert facts("llama-3.1-8b")["notes"] == []


def test_the_grid_has_the_plans_own_formats_first() -> None:
    for model, device, kv, flags in (
        ("gpt-3", "cpu", None, {}),  # float16
        ("gpt-2-small", "h200", "int8", {"quantization": "fp8"}),
        ("gpt-2-small", "h200", None, {"dtype": "float32"}),
    ):
        plan = make_plan(PlanOptions(model, None, device, kv, 1, flags), {})
        told = answer(plan)
        own, request = told["what_if"][0], told["request"]
        held = (own["weights"], own["kv"])
        assert held == (request["quantization"] or request["format"], request["kv_format"])
        lines = told["capacity"]["sequences"]
        assert own["sequences"] == (lines[-1]["sequences"] if lines else None)
    assert ("bf16", "bf16") in {(cell["weights"], cell["kv"]) for cell in told["what_if"]}


def test_no_rate_is_told_where_one_side_is_unknown() -> None:
    text = text_of("gpt-2-xl", "h100", **{"dtype": "float32"})
    row = next(line for line in text.splitlines() if line.startswith("prefill"))
    assert row.split()[-2:] == ["-", "-"]


def test_a_reader_that_leaves_early_changes_no_exit_code() -> None:
    program = 'quire() { PY -m server plan "$@"; }; quire --list | true; echo ${PIPESTATUS[0]}; '
    program += "quire gpt-3 --device h200 --explain | true; echo ${PIPESTATUS[0]}"
    done = subprocess.run(
        ["bash", "-c", program.replace("PY", sys.executable)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.split(), done.stderr) == (["0", "1"], "")


@pytest.mark.parametrize(
    ("number", "text"),
    [(5, "5"), (999.4, "999"), (999.6, "1 k"), (999_885_952, "1 G"), (4.5e15, "4,500 T")],
)
def test_numbers_for_people(number: float, text: str) -> None:
    assert decimal(number) == text


def test_help_tells_the_keys_of_a_shape() -> None:
    help = quire("--help").stdout
    assert "experts_per_token" in help and "Exit codes: 0 it fits; 1 it does not" in help


def test_devices_are_what_they_are() -> None:
    """A transposed digit would go unseen: the ratios between boards that share a chip."""
    by_name = {device.name: device for device in DEVICES}
    assert by_name["h200"].flops_16bit == by_name["h100"].flops_16bit
    for device in DEVICES:
        assert 2**34 < device.memory_bytes < 2**38 and device.capability >= (8, 0)
        assert device.flops_16bit and device.bandwidth
        assert 50 < device.flops_16bit / device.bandwidth < 450  # FLOPs a byte
        if device.flops_fp8:
            assert device.flops_fp8 == pytest.approx(2 * device.flops_16bit, rel=0.02)
        assert (device.flops_fp8 is None) == (device.capability < (8, 9))

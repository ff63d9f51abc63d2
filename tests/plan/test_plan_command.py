"""``quire plan`` as people and scripts run it: a real process, its output, its exit code."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli import main
from server.memory.kinds import MemoryKind
from server.plan_cli.command import listing
from server.plan_cli.devices import DEVICES
from server.plan_cli.text import WIDTH
from tests.plan.plans import told
from weights.presets import read_presets
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_llama

SLOW = pytest.mark.slow
MOST_TIMES = 12  # the processor time of an interpreter that reads JSON: it is 4 to 6


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


def run_and_measure(program: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """What a program in a process of its own does, and its processor time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def test_it_fits_and_costs_no_torch_and_little_more_than_its_interpreter() -> None:
    """Processor time beside a control of the same minute: a busy machine makes both dearer."""
    control = "import argparse, dataclasses, json, logging, pathlib, re, typing"
    program = (
        "import sys\n"
        "from server.cli import main\n"
        "code = main(['plan', 'llama-3.1-70b', '--device', 'h200', '--tp', '2', '--explain'])\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'transformers', 'fastapi'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    times = []
    for _ in range(3):
        done, took = run_and_measure(program)
        assert (done.returncode, done.stderr.strip()) == (0, "[]")
        assert "llama-3.1-70b on h200" in done.stdout and "fits" in done.stdout.splitlines()[0]
        times.append(took / run_and_measure(control)[1])
    print("quire plan took", ", ".join(f"{one:.1f}" for one in times), "times the control")
    assert min(times) < MOST_TIMES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lama-3-8b",), "no preset and no folder is named 'lama-3-8b'; did you mean llama-3-8b"),
        (("gpt-3", "--device", "h300"), "--device h300: unknown; did you mean h200"),
        (("gpt-3", "--device", "24GB"), '"24GB" is not a size such as'),
        (("gpt-3", "--device", "1MiB"), '"1MiB" is not between 1.00 GiB and'),
        (("gpt-3", "--tp", "5"), "--tensor-parallel-size 5: 96 query heads do not divide"),
        (("gpt-3", "--tp", "two"), '"two" is not a whole number'),
        (("gpt-3", "--max-model-len", "4096", "--device", "h200"), "exceeds the model's 2048"),
        (("gpt-3", "--dtype", "int7"), "--dtype: 'int7' is not one of"),
        (("gpt-3", "--device", "cpu", "--quantization", "int4"), "needs a GPU"),
        (("gpt-3", "--kv-cache-dtype", "int2"), "invalid choice: 'int2'"),
        (("--shape", "/no/such.toml"), "/no/such.toml: No such file"),
        (("gpt-3", "--shape", "own.toml"), "gpt-3 and --shape own.toml: give one of them"),
        ((__file__,), "is a file: give a shape with --shape"),
        (("--shpae", "own.toml"), "unknown option --shpae; did you mean --shape?"),
        (("",), "MODEL is empty"),
        (("--shape", ""), "--shape is empty"),
        (("gpt-3", "--device", " "), "--device is empty"),
        (("gpt-3", "--device", "9" * 400 + "GiB"), "99… is not between 1.00 GiB and"),
        (("gpt-3", "--device", "24"), '"24" (bytes) is not between 1.00 GiB and'),
        (("x" * 300,), "no preset and no folder is named"),
        (("gpt-3", "--device", "l4", "--device", "h200"), "--device: given twice, l4 and h200"),
        (("gpt-3", "--tp", "1", "--tensor-parallel-size", "2"), "given twice, 1 and 2"),
        (("gpt-3", "--list"), "--list plans nothing"),
    ],
)
def test_bad_input_is_named_and_exits_2(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("QUIRE_")]:
        monkeypatch.delenv(name)
    try:
        code = main(["plan", *arguments])
    except SystemExit as end:  # argparse's own
        code = int(end.code or 0)
    said = capsys.readouterr()
    assert (code, said.out) == (2, "") and message in said.err


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
    assert "no checkpoints of the family shape" in " ".join(plan["notes"])
    path.write_text("hiden_size = 3")
    done = quire("--shape", str(path))
    assert done.returncode == 2 and '"hiden_size"; did you mean hidden_size' in done.stderr


def test_a_folder_and_the_servers_variables(tmp_path: Path) -> None:
    write_checkpoint(tiny_llama(), tmp_path, seed=1)
    done = quire(str(tmp_path), "--device", "cpu", "--json", QUIRE_MAX_NUM_SEQS="5")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["request"]["max_num_seqs"] == 5
    (tmp_path / "config.json").write_text("{}")
    done = quire(str(tmp_path), "--device", "cpu")
    assert done.returncode == 2 and "config.json: model_type is missing" in done.stderr


def test_json_has_every_kind_and_closes() -> None:
    plan = told("llama-3.1-8b")
    assert list(plan["split"]) == [str(kind) for kind in MemoryKind]
    assert sum(plan["split"].values()) == plan["total_bytes"]
    assert plan["estimated"] == ["allocator_slack", "runtime"]
    assert plan["fits"] and plan["suggestions"] == [] and plan["refusal"] is None
    census = sum(line["bytes"] for line in plan["census"].values())
    assert census == plan["everything"]["bytes"] == plan["split"]["weights"]
    assert "formulas" not in plan


def test_every_kind_and_line_has_a_formula_when_asked() -> None:
    plan = told("mixtral-8x7b", explain=True)
    assert set(plan["split"]) <= set(plan["formulas"])
    assert {f"census.{name}" for name in plan["census"]} <= set(plan["formulas"])
    flops = plan["flops"]
    assert plan["formulas"]["FLOPs.decode"].endswith(f"= {flops['decode_per_token']}")
    assert plan["formulas"]["census.up"] == "256 x 14336 x 4096"
    assert plan["formulas"]["weights"].startswith("46702792704 parameters x 2 B (bf16)")


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

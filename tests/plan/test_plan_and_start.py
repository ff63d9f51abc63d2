"""A plan of a folder is what ``quire serve`` plans for it, on the machine and on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import server.memory.backends.torch_cpu.parts as parts
import server.startup.model_info as model_facts
import server.startup.placement as placement
from server.config.options import DEMO_MODEL_DIR
from server.config.server_config import ServerConfig, resolve
from server.errors import StartupError
from server.memory.accounting.gpu_device import GpuDevice
from server.memory.backends.triton_cuda.parts import found_gpu
from server.plan_cli.make import PlanOptions, make_plan
from server.plan_cli.split import memory_split
from tests.plan.plans import plan
from weights.spec import ModelSpec
from weights.synthetic.checkpoint import write_checkpoint
from weights.synthetic.tiny_specs import tiny_gpt2, tiny_llama

GIB = 2**30
LARGE = tiny_llama(vocab_size=70_000, hidden_size=512, num_layers=2, parameter_dtype="bf16")
SPECS = {"llama": tiny_llama(tied=True), "gpt2": tiny_gpt2(), "wide": LARGE}
FLAGS = (
    {},
    {"max-num-seqs": "4", "max-model-len": "100", "max-num-batched-tokens": "64"},
    {"dtype": "bfloat16", "kv-cache-memory": "1MiB", "block-size": "32"},
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {"demo": DEMO_MODEL_DIR}
    for name, spec in SPECS.items():
        made[name] = tmp_path_factory.mktemp(name)
        write_checkpoint(spec, made[name], seed=1, format=spec.parameter_dtype)
    return made


@pytest.fixture
def still_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same reading for both: other processes come and go between two real ones."""
    monkeypatch.setattr(parts, "machine_memory", lambda: (8 * GIB, 6 * GIB))


@pytest.mark.usefixtures("still_memory")
@pytest.mark.parametrize("flags", FLAGS, ids=["defaults", "small", "narrow"])
@pytest.mark.parametrize("name", ["demo", *SPECS])
def test_on_a_cpu_both_plan_the_same_bytes(
    folders: dict[str, Path], name: str, flags: dict[str, str]
) -> None:
    config = resolve({"model-dir": str(folders[name]), "device": "cpu", **flags}, {})
    served = model_facts.read_model(config).plan
    ours = plan(folders[name], "cpu", **flags)
    assert ours.memory.kinds == served.kinds
    assert ours.memory.config == served.config
    assert ours.memory.layout.weights == served.layout.weights
    split = memory_split(ours)
    assert {kind: split[kind] for kind in served.kinds} == served.kinds
    assert sum(split.values()) == 8 * GIB and split["other_processes"] == 2 * GIB
    assert ours.notes == ()


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("name", ["demo", *SPECS])
def test_on_a_gpu_that_is_empty_both_plan_the_same_bytes(
    folders: dict[str, Path], name: str, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    l4 = GpuDevice("NVIDIA L4", (8, 9), 23034 * 2**20, 23034 * 2**20)

    def place(config: ServerConfig, model: ModelSpec) -> placement.Placement:
        return placement.place(config, model, find=lambda backend: found_gpu(l4))

    monkeypatch.setattr(model_facts, "place", place)
    flags = {"quantization": quantization}
    config = resolve({"model-dir": str(folders[name]), "device": "cuda", **flags}, {})
    served = model_facts.read_model(config).plan
    ours = plan(folders[name], "l4", **flags)
    assert ours.memory.kinds == served.kinds and "graphs" in served.kinds
    assert ours.memory.config == served.config
    assert sum(memory_split(ours).values()) == l4.total


@pytest.mark.usefixtures("still_memory")
@pytest.mark.parametrize("cache", ["64KiB", "5.9GiB", "64GiB"])
def test_both_refuse_alike(folders: dict[str, Path], cache: str) -> None:
    flags = {"max-model-len": "500", "kv-cache-memory": cache}
    config = resolve({"model-dir": str(folders["llama"]), "device": "cpu", **flags}, {})
    with pytest.raises(StartupError) as raised:
        model_facts.read_model(config)
    ours = plan(folders["llama"], "cpu", **flags)
    assert not ours.fits
    changes = " or ".join(change.option for change in ours.changes)
    assert f"{ours.refusal}; what would fit: {changes}" == str(raised.value)


def test_options_are_read_where_the_server_reads_them(folders: dict[str, Path]) -> None:
    variables = {"QUIRE_MODEL_DIR": str(folders["gpt2"]), "QUIRE_MAX_NUM_SEQS": "3"}
    ours = make_plan(PlanOptions(None, None, "cpu", None, 1, {}), variables)
    assert (ours.model.spec.family, ours.config.scheduler.max_num_seqs) == ("gpt2", 3)


def copy_of(spec: ModelSpec, folder: Path) -> Path:
    write_checkpoint(spec, folder, seed=2)
    return folder


@pytest.mark.usefixtures("still_memory")
def test_a_folder_without_weights_is_planned_and_says_so(tmp_path: Path) -> None:
    folder = copy_of(tiny_llama(), tmp_path / "bare")
    whole = plan(folder, "cpu")
    (folder / "model.safetensors").unlink()
    bare = plan(folder, "cpu")
    assert bare.memory.kinds == whole.memory.kinds
    assert any("no .safetensors file in the folder" in note for note in bare.notes)


def test_an_adapters_folder_is_no_model_though_it_has_a_config(tmp_path: Path) -> None:
    folder = copy_of(tiny_llama(), tmp_path / "adapter")
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(StartupError, match="holds an adapter, not a model"):
        plan(folder, "cpu")


def test_a_folder_of_a_family_that_is_not_served_is_told_of_presets(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    with pytest.raises(StartupError, match=r"planned from a preset \(--list\) or a --shape file"):
        plan(tmp_path, "cpu")


def test_a_folder_whose_weights_are_not_the_configs_is_refused(tmp_path: Path) -> None:
    folder = copy_of(tiny_llama(), tmp_path / "model")
    other = copy_of(replace(tiny_llama(), num_layers=2, windows=()), tmp_path / "other")
    (other / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(StartupError, match=r"layers\.2\."):
        plan(folder, "cpu")
